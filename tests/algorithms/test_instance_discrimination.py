import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.utils.data import Subset

from superself import Batch, InstanceDiscriminationSupervisor
from superself.networks import MemoryBank

from cases import TinyBackbone, tiny_images


def discrimination(images=None, **arguments):
    images = tiny_images() if images is None else images
    arguments = {"backbone": TinyBackbone(), "seed": 0, "augment": lambda view: view, **arguments}
    return InstanceDiscriminationSupervisor(images, **arguments)


class Direction(nn.Module):
    """The brightness of an image, from 0 to 1, as a direction from 0 to 180 degrees, turned by a trainable angle."""

    def __init__(self):
        super().__init__()
        self.turn = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        angle = math.pi * images.mean((1, 2, 3)) + self.turn
        return torch.stack([angle.cos(), angle.sin()], 1)


def by_direction(images, **arguments):
    arguments = {"backbone": Direction(), "projector": nn.Identity(), "normalize": (0.0, 1.0), **arguments}
    return discrimination(images, **arguments)


def flat_images(n=8):
    """Image i is as bright as 20 i."""
    return (torch.arange(n) * 20).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()


def embeddings_of(supervisor, images):
    return normalize(supervisor.model(supervisor.preprocessing(images)), dim=1)


def test_loss_equals_the_double_loop_over_the_whole_bank():
    supervisor, index = discrimination(temperature=0.2).eval(), torch.tensor([5, 2, 11])
    bank, total = supervisor.bank.features, 0.0
    for v, i in zip(embeddings_of(supervisor, tiny_images()[index]), index, strict=True):
        scores = [math.exp((v @ row).item() / 0.2) for row in bank]
        total -= math.log(scores[i] / sum(scores))
    loss = supervisor._forward(Batch(tiny_images()[index], index))
    assert bank.shape == (16, 128) and loss.item() == pytest.approx(total / 3, rel=1e-4)


def test_loss_equals_a_number_worked_by_hand():
    supervisor = by_direction(flat_images(2), temperature=1.0, proximal=10.0)
    supervisor.bank.features.copy_(torch.tensor([[0.8, 0.6], [0.0, 1.0]]))
    loss = supervisor._forward(
        Batch(flat_images(1), torch.tensor([0]))
    )  # v = (1, 0): cosines 0.8 and 0, distance^2 0.4
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.8)) + 10 * 0.4, rel=1e-4)


def test_proximal_term_uses_the_row_as_it_was_before_the_step():
    plain, held = by_direction(flat_images(), seed=1), by_direction(flat_images(), proximal=3.0, seed=1)
    data = Batch(flat_images()[2:5], torch.arange(2, 5))
    distance = (embeddings_of(held, data.images) - held.bank.rows(data.index)).square().sum(1).mean()
    gap = held._forward(data) - plain._forward(data)
    assert gap.item() == pytest.approx(3 * distance.item(), rel=1e-4)
    held.bank.commit()  # the next batch is compared with the rows just written
    assert not torch.allclose(held._forward(data) - plain._forward(data), gap)


def test_rows_belong_to_their_images_when_batches_are_shuffled():
    images = flat_images()
    supervisor = by_direction(images, momentum=0.0)
    supervisor.supervise(lr=1e-9, epochs=1, batch_size=3, name="run", progress=False)
    assert torch.allclose(supervisor.bank.features, embeddings_of(supervisor, images), atol=1e-5)


def test_rows_follow_the_positions_in_a_subset():
    whole = [(image, 0) for image in flat_images(12)]
    supervisor = by_direction(Subset(whole, [9, 3, 7, 1]), momentum=0.0)
    supervisor.supervise(lr=1e-9, epochs=1, batch_size=2, name="run", progress=False)
    assert torch.allclose(supervisor.bank.features, embeddings_of(supervisor, flat_images(12)[[9, 3, 7, 1]]), atol=1e-5)


def test_a_row_becomes_the_mean_of_old_and_new_after_the_optimizer_step_and_others_stay():
    seen = []

    class Observed(InstanceDiscriminationSupervisor):
        def _forward(self, data):
            self.before, self.index = self.bank.features.clone(), data.index
            self.new = embeddings_of(self, data.images).detach()
            loss = super()._forward(data)
            assert torch.equal(self.bank.features, self.before)
            return loss

        def _update(self, *arguments):
            super()._update(*arguments)
            assert torch.equal(self.bank.features, self.before)

        def _after_step(self):
            super()._after_step()
            expected = self.before.clone()
            expected[self.index] = normalize((self.before[self.index] + self.new) / 2, dim=1)
            assert torch.allclose(self.bank.features, expected, atol=1e-6)
            seen.append(self.index)

    supervisor = Observed(tiny_images(), backbone=TinyBackbone(), augment=lambda view: view)
    supervisor.supervise(epochs=2, batch_size=4, name="run", progress=False, precision="32-true")
    assert len(seen) == 8 and torch.allclose(supervisor.bank.features.norm(dim=1), torch.ones(16))


def test_drawn_negatives_come_from_the_generator_and_the_own_row_is_marked():
    def keep(query, row, negatives, own):
        kept.append((row, negatives, own))
        return query.mean()

    kept = []
    supervisor = discrimination(negatives=5, loss=keep)
    index = torch.arange(3, 9)
    for seed in (0, 0, 1):
        supervisor.generator.manual_seed(seed)
        supervisor._forward(Batch(tiny_images()[index], index))
    (row, first, own), (_, again, _), (_, other, _) = kept
    assert first.shape == (5, 128) and torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(row, supervisor.bank.features[index])
    slow = torch.tensor([[torch.equal(a, b) for b in first] for a in row])
    assert torch.equal(own, slow)


@pytest.mark.parametrize(("negatives", "candidates"), [(None, 16), (5, 6), (100, 16)])
def test_equal_rows_give_the_chance_level(negatives, candidates):
    supervisor = discrimination(negatives=negatives)
    supervisor.bank.features[:] = supervisor.bank.features[0].clone()  # all rows alike
    losses = [supervisor._forward(Batch(tiny_images()[i : i + 1], torch.tensor([i]))).item() for i in range(16)]
    assert supervisor.chance_loss == pytest.approx(math.log(candidates)) == pytest.approx(max(losses), abs=1e-5)


def test_chance_level_adds_the_distance_of_orthogonal_directions_for_the_proximal_term():
    assert discrimination(proximal=0.5).chance_loss == pytest.approx(math.log(16) + 1)


def test_the_width_of_the_bank_is_that_of_the_projector():
    assert discrimination(projector=nn.Linear(16, 7)).bank.features.shape == (16, 7)


def held_out_loss(supervisor, images):
    """The loss against a bank of these images, in evaluation mode."""
    supervisor.eval()
    supervisor.bank = MemoryBank(len(images), supervisor.bank.features.shape[1], momentum=0.0)
    data = Batch(images, torch.arange(len(images)))
    with torch.no_grad():
        supervisor._forward(data)
        supervisor.bank.commit()
        return supervisor._forward(data).item()


def test_learns_to_distinguish_images_it_was_not_trained_on():
    def noisy(view):
        return (view + 0.1 * torch.randn(view.shape, generator=noise)).clamp(0, 1)

    noise = torch.Generator().manual_seed(0)
    settings = {"augment": noisy, "backbone": TinyBackbone(), "seed": 0}
    before = held_out_loss(InstanceDiscriminationSupervisor(tiny_images(64), **settings), tiny_images(32, seed=1))
    supervisor = InstanceDiscriminationSupervisor(tiny_images(64), **settings)
    supervisor.supervise(lr=1e-2, epochs=20, batch_size=32, name="run", progress=False)
    after = held_out_loss(supervisor, tiny_images(32, seed=1))
    assert supervisor.chance_loss == pytest.approx(math.log(32))
    assert after < 0.6 * supervisor.chance_loss < before


def test_the_noted_cosine_is_that_of_embedding_and_row():
    noted = {}

    class Noting(InstanceDiscriminationSupervisor):
        def note(self, name, value):
            noted[name] = value.tolist()

    arguments = {"backbone": Direction(), "projector": nn.Identity(), "normalize": (0.0, 1.0), "augment": None}
    supervisor = Noting(flat_images(2), **arguments)
    supervisor.bank.features.copy_(torch.tensor([[0.8, 0.6], [0.0, 1.0]]))
    supervisor._forward(Batch(flat_images(1), torch.tensor([0])))  # embedding (1, 0)
    assert noted == {"cosine_to_own_row": [pytest.approx(0.8)]}


def test_a_projector_that_is_not_a_module_is_refused():
    with pytest.raises(TypeError, match="projector='mlp' is not a head; pass an instance of nn.Module"):
        discrimination(projector="mlp")


def test_a_projector_may_be_given_as_arguments_of_mlp():
    supervisor = discrimination(projector={"layers": 2, "out_features": 7}, backbone=TinyBackbone())
    assert len(supervisor.model.predictor) == 3 and supervisor.bank.features.shape[1] == 7


@pytest.mark.parametrize("loss", [None, nn.MSELoss()], ids=["own loss", "custom loss"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, r"temperature must be a number above 0, got 0.0 \(it divides similarities\)"),
        ({"temperature": -5}, r"temperature must be a number above 0, got -5 \(it divides similarities\)"),
        ({"momentum": 1.0}, r"momentum must be a number in \[0, 1\), got 1.0 "),
        ({"negatives": 0}, "negatives must be an integer of at least 1, got 0 "),
        ({"proximal": -1.0}, "proximal must be a number of at least 0, got -1.0 "),
        ({"augment": "byol"}, "makes 2 views of an image, .*1 are needed"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message, loss):
    with pytest.raises(ValueError, match=message):
        discrimination(loss=loss, **arguments)
