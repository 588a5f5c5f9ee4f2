"""The loss of a method on images that it was not trained on."""

import math

import pytest
import torch

from superself import (
    ExemplarNetSupervisor,
    InstanceDiscriminationSupervisor,
    MomentumContrastSupervisor,
    RotateNetSupervisor,
)
from superself.data import open_images
from superself.evaluation import HeldOutLoss, held_out_loss
from superself.evaluation.subject import Subject

from cases import CASES, TinyBackbone, tiny_images


def trained(algorithm, **arguments):
    supervisor = algorithm(tiny_images(), backbone=TinyBackbone(), seed=0, **arguments)
    return supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False, precision="32-true")


def others(n=16, **arguments):
    return open_images(tiny_images(n, seed=1, **arguments)).load()


def test_the_loss_is_the_mean_over_whole_batches_in_evaluation_mode():
    supervisor, images = trained(RotateNetSupervisor, augment=None), others(11)
    found = held_out_loss(supervisor, images, batch_size=4)
    supervisor.eval()
    with torch.no_grad():
        parts = [supervisor._forward(images.batch(torch.arange(start, start + 4))).item() for start in (0, 4)]
    assert found.loss == pytest.approx(sum(parts) / 2) and found.chance == math.log(4)
    assert 0 <= found.noted["accuracy"] <= 1


def test_a_single_smaller_batch_counts():
    supervisor, images = trained(RotateNetSupervisor, augment=None), others(3)
    assert held_out_loss(supervisor, images).loss == pytest.approx(held_out_loss(supervisor, images, batch_size=3).loss)


def test_chosen_images_are_spread_over_the_data_set():
    supervisor = trained(RotateNetSupervisor, augment=None)
    images, part = others(12), open_images(tiny_images(12, seed=1)[::3])
    assert held_out_loss(supervisor, images, count=4).loss == pytest.approx(held_out_loss(supervisor, part).loss)


def test_a_transform_is_applied_first():
    supervisor, images = trained(RotateNetSupervisor, augment=None), others()
    changed = open_images(255 - tiny_images(16, seed=1))
    found = held_out_loss(supervisor, images, transform=lambda batch: 255 - batch).loss
    assert found == pytest.approx(held_out_loss(supervisor, changed).loss)
    assert found != pytest.approx(held_out_loss(supervisor, images).loss)


def test_a_memory_bank_holds_the_images_that_are_asked_about_and_the_old_one_comes_back():
    supervisor = trained(InstanceDiscriminationSupervisor)
    bank, rows = supervisor.bank, supervisor.bank.features.clone()
    sizes = []
    supervisor.model.register_forward_hook(lambda *_: sizes.append(len(supervisor.bank.features)))
    found = held_out_loss(supervisor, others(40), count=12, batch_size=4)
    assert sizes == [12] * 6 and math.isfinite(found.loss)  # three batches fill the bank, three are measured
    assert found.chance == pytest.approx(math.log(12) + 2 * supervisor.proximal)
    assert supervisor.bank is bank and torch.equal(bank.features, rows)


def test_no_row_of_a_queue_counts_as_a_held_out_image():
    supervisor = trained(MomentumContrastSupervisor, queue_size=16)
    seen = []
    supervisor.queue.same_image = lambda index: seen.append(index) or torch.zeros(len(index), 16, dtype=torch.bool)
    held_out_loss(supervisor, others(), batch_size=8)
    assert torch.cat(seen).min() == 16 and supervisor.queue.places.max() == 15
    seen.clear()
    held_out_loss(supervisor, supervisor.images, batch_size=8)
    assert torch.cat(seen).tolist() == list(range(16))


def test_classes_that_are_training_images_have_no_held_out_loss():
    supervisor = trained(ExemplarNetSupervisor, n_classes=10)
    with pytest.raises(ValueError, match=r"ExemplarNetSupervisor is about its own .* leave out testdata=, or pass"):
        held_out_loss(supervisor, others())
    places = []
    hook = supervisor.model.register_forward_pre_hook(lambda _, inputs: places.append(len(inputs[0])))
    assert math.isfinite(held_out_loss(supervisor, supervisor.images, batch_size=16).loss) and places == [10]
    hook.remove()


def plain(attributes):
    return {name: value for name, value in attributes.items() if name not in ("_parameters", "_buffers", "_modules")}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.algorithm.__name__)
def test_measuring_is_repeatable_and_changes_nothing(case):
    supervisor = case.make()
    supervisor.train()
    images = supervisor.images if supervisor.knows_its_images else others()
    state = {name: value.clone() for name, value in supervisor.state_dict().items()}
    generators = supervisor.generator.get_state(), torch.get_rng_state()
    attributes = {module: dict(plain(vars(module))) for module in supervisor.modules()}
    first = held_out_loss(supervisor, images, batch_size=8)
    assert held_out_loss(supervisor, images, batch_size=8) == first
    assert math.isfinite(first.loss)
    assert all(torch.equal(value, state[name]) for name, value in supervisor.state_dict().items())
    assert torch.equal(supervisor.generator.get_state(), generators[0])
    assert torch.equal(torch.get_rng_state(), generators[1])
    assert list(supervisor.modules()) == list(attributes)
    for module, before in attributes.items():
        after = plain(vars(module))
        assert list(after) == list(before) and all(after[name] is before[name] for name in before), module


def test_the_values_of_a_run_do_not_contain_those_of_the_measurement():
    supervisor = trained(RotateNetSupervisor)
    supervisor.run.metrics.clear()
    held_out_loss(supervisor, others())
    assert supervisor.run.metrics.means() == {}


def test_the_evaluator_opens_test_images_at_the_size_of_the_training_images():
    sizes = []

    def loss(images):
        sizes.append(images.shape)
        return 0.5

    supervisor = trained(RotateNetSupervisor, view_size=8, augment="crop-flip")
    backbone = supervisor.get_backbone()
    subject = Subject(backbone, images=supervisor.images, held_out_loss=loss)
    evaluator = HeldOutLoss(tiny_images(4, size=(20, 20)))
    assert evaluator.evaluate(subject) == {"held_out_loss": 0.5}
    assert sizes == [(3, 16, 16)] and evaluator.higher_is_better is False


def test_a_backbone_without_a_method_is_refused():
    with pytest.raises(ValueError, match="HeldOutLoss needs the method"):
        HeldOutLoss(tiny_images(4)).open(Subject(TinyBackbone()))
