import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from superself import Batch, InstanceDiscriminationSupervisor, PIRLSupervisor
from superself.algorithms.pirl import JigsawHead
from superself.networks import MemoryBank

from cases import TinyBackbone, tiny_images


def pirl(images=None, **arguments):
    images = tiny_images(size=(24, 24)) if images is None else images
    whole = {"augment": lambda view: view, "tile_augment": lambda view: view, "tile": 8}
    return PIRLSupervisor(images, **{"backbone": TinyBackbone(), "seed": 0, **whole, **arguments})


def batch(n=16):
    return Batch(tiny_images(n, size=(24, 24)), torch.arange(n))


def cross_entropies(embeddings, index, bank, temperature):
    """A double loop: each embedding against every row of the bank."""
    losses = []
    for embedding, i in zip(normalize(embeddings, dim=1), index, strict=True):
        scores = [math.exp(embedding @ row / temperature) for row in bank]
        losses.append(-math.log(scores[i] / sum(scores)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_loss_equals_the_double_loop_of_both_terms_against_the_bank(weight):
    supervisor, index = pirl(weight=weight, temperature=0.3).eval(), torch.tensor([4, 11, 0])
    images = tiny_images(size=(24, 24))[index]
    with torch.no_grad():
        supervisor.generator.manual_seed(1)
        loss = supervisor._forward(Batch(images, index)).item()
        supervisor.generator.manual_seed(1)
        puzzles = supervisor._puzzles(images)  # (3, 9, 3, 8, 8)
        prepared = [[supervisor.preprocessing(tile[None]) for tile in puzzle] for puzzle in puzzles]
        features = [torch.cat([supervisor.model.features(tile) for tile in tiles]) for tiles in prepared]
        puzzle = torch.stack([supervisor.jigsaw_head(f[None])[0] for f in features])
        bank, whole = supervisor.bank.features, supervisor.model(supervisor.preprocessing(images))
    puzzle_loss, view_loss = (cross_entropies(e, index, bank, 0.3) for e in (puzzle, whole))
    assert loss == pytest.approx(weight * puzzle_loss + (1 - weight) * view_loss, rel=1e-4)


def test_jigsaw_head_equals_numbers_worked_by_hand():
    head = JigsawHead(in_features=1, out_features=1, tiles=3)
    head.load_state_dict(
        {
            "tile.weight": torch.tensor([[2.0]]),
            "tile.bias": torch.tensor([1.0]),
            "row.weight": torch.tensor([[1.0, 10.0, 100.0]]),
            "row.bias": torch.tensor([0.5]),
        }
    )
    features = torch.tensor([[[1.0], [2.0], [3.0]], [[3.0], [2.0], [1.0]]])  # tiles become 3, 5, 7 and 7, 5, 3
    assert head(features).tolist() == [[753.5], [357.5]]


def test_each_head_is_trained_by_its_own_term_and_positives_come_from_the_bank():
    for weight, idle in ((1.0, "model.predictor."), (0.0, "jigsaw_head.")):
        supervisor = pirl(weight=weight)
        supervisor._forward(batch()).backward()
        for name, parameter in supervisor.named_parameters():
            assert (parameter.grad.abs().sum() == 0) == name.startswith(idle), name
    assert not supervisor.bank.features.requires_grad


def test_weight_zero_is_instance_discrimination():
    supervisor = pirl(weight=0.0)
    other = InstanceDiscriminationSupervisor(
        tiny_images(size=(24, 24)), backbone=TinyBackbone(), augment=lambda view: view, seed=0
    )
    other.load_state_dict({k: v for k, v in supervisor.state_dict().items() if not k.startswith("jigsaw_head.")})
    assert supervisor._forward(batch()).item() == pytest.approx(other._forward(batch()).item(), rel=1e-5)


def test_both_heads_and_the_bank_move_and_are_stored():
    supervisor = pirl()
    before = copy.deepcopy(supervisor.state_dict())
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    loaded = pirl(seed=3).load("run").state_dict()
    for name in ("model.predictor.0.weight", "jigsaw_head.tile.weight", "jigsaw_head.row.weight", "bank.features"):
        assert not torch.equal(before[name], loaded[name]), name
        assert torch.equal(supervisor.state_dict()[name], loaded[name]), name


def test_rows_move_towards_the_embedding_of_the_view_alone_and_after_the_optimizer_step():
    class Observed(PIRLSupervisor):
        def _forward(self, data):
            self.before, self.index = self.bank.features.clone(), data.index
            with torch.no_grad():
                self.new = normalize(copy.deepcopy(self.model)(self.preprocessing(data.images)), dim=1)
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
            assert torch.allclose(self.bank.features, expected, atol=1e-5)

    supervisor = Observed(tiny_images(), augment=lambda view: view, backbone=TinyBackbone())
    supervisor.supervise(epochs=2, batch_size=4, name="run", progress=False, precision="32-true")
    assert supervisor.step == 8


def test_the_nine_tiles_of_each_image_come_in_a_different_random_order():
    cells = torch.arange(9).view(3, 3).repeat_interleave(8, 0).repeat_interleave(8, 1)  # cell i has brightness i
    images = (cells * 20).to(torch.uint8).expand(64, 3, 24, 24)
    supervisor = pirl(images)
    tiles = supervisor._puzzles(images)
    assert tiles.shape == (64, 9, 3, 8, 8) and torch.equal(tiles.amin((2, 3, 4)), tiles.amax((2, 3, 4)))
    orders = (tiles[:, :, 0, 0, 0] * 255 / 20).round().long()
    assert torch.equal(orders.sort(1).values, torch.arange(9).expand(64, 9))
    assert len({tuple(order) for order in orders.tolist()}) > 60
    pairs = set(itertools.product(range(9), range(9)))
    assert {(cell, position) for order in orders.tolist() for position, cell in enumerate(order)} == pairs
    supervisor.generator.manual_seed(0)
    assert torch.equal(supervisor._puzzles(images), tiles)


def test_the_backbone_sees_each_tile_as_a_separate_image():
    shapes = []

    class Observed(TinyBackbone):
        def forward(self, images):
            shapes.append(tuple(images.shape))
            return super().forward(images)

    supervisor = pirl(backbone=Observed())
    shapes.clear()
    supervisor._forward(batch())
    assert shapes == [(16, 3, 24, 24), (144, 3, 8, 8)]


@pytest.mark.parametrize(
    ("size", "tile", "source"),
    [
        ((224, 224), 64, (255, 255)),  # the authors' numbers
        ((225, 180), 51, (255, 204)),
        ((96, 96), 27, (108, 108)),
        ((32, 32), 9, (36, 36)),
        ((16, 20), 5, (21, 26)),
    ],
)
def test_tiles_follow_the_size_of_the_image(size, tile, source):
    images = tiny_images(2, size=size)
    supervisor = pirl(images, tile=None, tile_augment=None)
    seen = []
    supervisor.cut.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[2:])))
    assert supervisor._puzzles(images).shape == (2, 9, 3, tile, tile) and seen == [source]


def test_a_grid_of_two_makes_four_tiles():
    supervisor = pirl(tiny_images(4, size=(32, 32)), grid=2, tile=None, tile_augment=None)
    assert supervisor._puzzles(tiny_images(4, size=(32, 32))).shape == (4, 4, 3, 14, 14)
    assert supervisor.jigsaw_head.row.in_features == 4 * 128


class FixedSize(nn.Module):
    """A backbone for images of one size, whose features are all its pixels."""

    def __init__(self, side):
        super().__init__()
        self.layer = nn.Linear(3 * side * side, 5)

    def forward(self, images):
        return self.layer(images.flatten(1))


def test_a_backbone_with_a_fixed_input_size_needs_tiles_of_that_size():
    with pytest.raises(ValueError, match=r"FixedSize takes images of 24 x 24 but no tiles of 7 x 7; pass tile=24"):
        pirl(backbone=FixedSize(24), tile=None, tile_augment=None)
    supervisor = pirl(backbone=FixedSize(24), tile=24, tile_augment=None)
    assert torch.isfinite(supervisor._forward(batch()))


def test_features_of_tiles_may_have_another_width_than_those_of_images():
    class Flat(TinyBackbone):
        def forward(self, images):
            return super().forward(images).flatten(1)

    supervisor = pirl(backbone=Flat())
    assert supervisor.model.predictor[0].in_features == 16 * 36 and supervisor.jigsaw_head.tile.in_features == 16 * 4
    assert torch.isfinite(supervisor._forward(batch()))


@pytest.mark.parametrize(("negatives", "candidates"), [(32000, 16), (None, 16), (5, 6)])
def test_equal_rows_give_the_chance_level(negatives, candidates):
    supervisor = pirl(negatives=negatives)
    supervisor.bank.features[:] = supervisor.bank.features[0].clone()  # all rows alike
    images = tiny_images(size=(24, 24))
    losses = [supervisor._forward(Batch(images[i : i + 1], torch.tensor([i]))).item() for i in range(16)]
    assert supervisor.chance_loss == pytest.approx(math.log(candidates)) == pytest.approx(max(losses), abs=1e-5)


def test_learns_to_distinguish_puzzles_of_images_it_was_not_trained_on():
    supervisor, held_out = pirl(tiny_images(64, size=(24, 24))), tiny_images(32, size=(24, 24), seed=1)
    supervisor.supervise(lr=1e-2, epochs=20, batch_size=32, name="run", progress=False)
    supervisor.eval().weight = 1.0
    supervisor.bank = MemoryBank(32, 128, momentum=0.0)
    with torch.no_grad():
        supervisor._forward(Batch(held_out, torch.arange(32)))
        supervisor.bank.commit()
        loss = supervisor._forward(Batch(held_out, torch.arange(32)))
    assert supervisor.chance_loss == pytest.approx(math.log(32)) and loss < 0.7 * supervisor.chance_loss


def test_both_terms_of_the_loss_are_noted():
    noted = {}

    class Noting(PIRLSupervisor):
        def note(self, name, value):
            noted[name] = value.item()

    supervisor = Noting(tiny_images(size=(24, 24)), backbone=TinyBackbone(), weight=0.3, seed=0)
    loss = supervisor._forward(batch()).item()
    assert loss == pytest.approx(0.3 * noted["puzzle_loss"] + 0.7 * noted["view_loss"])


@pytest.mark.parametrize("tile_augment", [None, True])
def test_views_for_tiles_are_the_authors_unless_something_else_is_passed(tile_augment):
    supervisor = pirl(tile_augment=tile_augment)
    assert [type(step).__name__ for step in supervisor.tile_augmentation.transforms[0].transforms][:1] == [
        "RandomResizedCrop"
    ]


def test_tile_augment_false_cuts_the_image_itself():
    images = tiny_images(2, size=(24, 24))
    supervisor = pirl(images, tile_augment=False, augment=False)
    seen = []
    supervisor.cut.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    supervisor._puzzles(images)
    supervisor._puzzles(images)
    assert torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("loss", [None, nn.MSELoss()], ids=["own loss", "custom loss"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": 1.5}, r"weight must be a number in \[0, 1\], got 1.5 "),
        ({"negatives": 0}, "negatives must be an integer of at least 1, got 0 "),
        ({"grid": 1}, "grid must be an integer of at least 2, got 1 "),
        ({"tile": 0}, "tile must be an integer of at least 1, got 0 "),
        ({"temperature": -5}, r"temperature must be a number above 0, got -5 \(it divides similarities\)"),
        ({"momentum": 1.0}, r"momentum must be a number in \[0, 1\), got 1.0 "),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message, loss):
    with pytest.raises(ValueError, match=message):
        pirl(loss=loss, **arguments)
