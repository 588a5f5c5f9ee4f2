"""The pretext loss of images that were not trained on."""

import math

import pytest
import torch

from bench.pretext import held_out_loss, reconstruction_errors
from superself import BiGanSupervisor, InstanceDiscriminationSupervisor, RotateNetSupervisor
from superself.data import open_images

from cases import TinyBackbone, tiny_images
from tensors import images_of


def trained(algorithm, **arguments):
    supervisor = algorithm(tiny_images(), backbone=TinyBackbone(), seed=0, **arguments)
    return supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False, precision="32-true")


def test_the_loss_is_the_mean_over_whole_batches_in_evaluation_mode():
    supervisor = trained(RotateNetSupervisor, augment=None)
    others = open_images(tiny_images(seed=1)).load()
    loss, chance = held_out_loss(supervisor, others, torch.arange(11), batch_size=4)
    supervisor.eval()
    with torch.no_grad():
        parts = [supervisor._forward(others.batch(torch.arange(start, start + 4))).item() for start in (0, 4)]
    assert loss == pytest.approx(sum(parts) / 2) and chance == math.log(4)


def test_modes_are_restored():
    supervisor = trained(RotateNetSupervisor)
    supervisor.train()
    held_out_loss(supervisor, supervisor.images, torch.arange(8), batch_size=4)
    assert all(module.training for module in supervisor.model.modules())


def test_a_memory_bank_holds_the_images_that_are_asked_about_and_the_old_one_comes_back():
    supervisor = trained(InstanceDiscriminationSupervisor)
    bank, rows = supervisor.bank, supervisor.bank.features.clone()
    sizes = []
    supervisor.model.register_forward_hook(lambda *_: sizes.append(len(supervisor.bank.features)))
    loss, chance = held_out_loss(supervisor, supervisor.images, torch.arange(12), batch_size=4)
    assert sizes == [12] * 6 and math.isfinite(loss)  # three batches fill the bank, three are measured
    assert chance == pytest.approx(math.log(12) + 2 * supervisor.proximal)
    assert supervisor.bank is bank and torch.equal(bank.features, rows)


@pytest.mark.parametrize(
    ("reconstruction", "expected"),
    [("its image", (0.0, 2.0)), ("the mean", (1.0, 1.0)), ("another image", (2.0, 2.0)), ("half of it", (0.25, 1.25))],
)
def test_reconstruction_errors_of_noise_are_those_worked_by_hand(reconstruction, expected):
    class Known(BiGanSupervisor):
        def reconstruct(self, images):
            wanted = self.preprocessing(images)
            return {
                "its image": wanted,
                "the mean": 0 * wanted,
                "another image": wanted.flip(0),
                "half of it": wanted / 2,
            }[reconstruction]

    supervisor = Known((255 * images_of(600)).to(torch.uint8), backbone=TinyBackbone())
    assert reconstruction_errors(supervisor, supervisor.images) == pytest.approx(expected, abs=0.05)
