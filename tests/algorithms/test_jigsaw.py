import math

import pytest
import torch
from torch import nn

from superself import Batch, JigsawNetSupervisor
from superself.algorithms.jigsaw import assemble, shift_channels
from superself.networks import describe

from cases import TinyBackbone, tiny_images


def jigsaw(images=None, **arguments):
    images = tiny_images() if images is None else images
    return JigsawNetSupervisor(images, **{"backbone": TinyBackbone(len(images[0])), "seed": 0, **arguments})


def batch(images=None):
    images = tiny_images() if images is None else images
    return Batch(images, torch.arange(len(images)))


def drawn(supervisor, images, seed=1):
    """The tiles, the permutations and the orders that the next step will take."""
    supervisor.generator.manual_seed(seed)
    found = supervisor._tiles(images), *supervisor._orders(len(images))
    supervisor.generator.manual_seed(seed)
    return found


def quarters(n, seed=0):
    """Images with another pattern in each quarter (horizontal, vertical and oblique lines, dots) and noise."""
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    patterns = [y % 4 < 2, x % 4 < 2, (x + y) % 4 < 2, (x % 4 < 2) & (y % 4 < 2)]
    image = assemble(torch.stack(patterns)[None, :, None].float()) * 120
    noise = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return (image + 100 * noise).to(torch.uint8)


@pytest.mark.parametrize("arguments", [{}, {"grid": 3, "n_permutations": 10}, {"whole": True}], ids=str)
def test_loss_equals_the_cross_entropy_of_puzzles_made_one_by_one(arguments):
    supervisor = jigsaw(**arguments).eval()
    tiles, targets, orders = drawn(supervisor, tiny_images())
    losses = []
    for i in range(16):
        for target, order in zip(targets[i], orders[i], strict=True):
            assert torch.equal(supervisor.permutations[target], order)
            puzzle = torch.stack([tiles[i, k] for k in order])  # (T, C, t, t)
            if supervisor.whole:
                logits = supervisor.model(assemble(puzzle[None]))
            else:
                logits = supervisor.model.predictor(supervisor.model.features(puzzle).view(1, -1))
            losses.append(-logits.log_softmax(1)[0, target].item())
    loss = supervisor._forward(batch())
    assert len(losses) == 16 * 4 and loss.item() == pytest.approx(sum(losses) / 64, rel=1e-4)


def test_a_number_worked_by_hand_and_the_chance_level():
    class Sure(nn.Linear):
        """The logit of the first permutation is 2, those of the others are 0."""

        def forward(self, y):
            return y.new_tensor([2.0] + [0.0] * 23).expand(len(y), 24) + 0 * super().forward(y)

    supervisor = jigsaw(predictor=Sure(64, 24), n_permutations_per_image=24)  # one of the 24 is the first
    expected = math.log(math.exp(2) + 23) - 2 / 24
    assert supervisor._forward(batch()).item() == pytest.approx(expected, rel=1e-5)
    assert supervisor.chance_loss == pytest.approx(math.log(24))
    assert jigsaw(grid=3, n_permutations=1000).chance_loss == pytest.approx(math.log(1000))


def test_a_puzzle_is_assembled_row_by_row():
    tiles = torch.arange(4.0).view(1, 4, 1, 1, 1).expand(1, 4, 1, 2, 2)[:, [2, 0, 3, 1]]
    assert assemble(tiles)[0, 0].tolist() == [[2, 2, 0, 0], [2, 2, 0, 0], [3, 3, 1, 1], [3, 3, 1, 1]]
    image = torch.rand(2, 3, 9, 9)
    parts = image.unfold(2, 3, 3).unfold(3, 3, 3).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    assert torch.equal(assemble(parts), image)


def test_all_permutations_are_drawn_equally_often_and_an_image_gets_different_ones():
    supervisor = jigsaw(n_permutations_per_image=3)
    targets, orders = supervisor._orders(8000)
    assert targets.shape == (8000, 3) and (targets.sort(1).values.diff(dim=1) > 0).all()
    counts = targets.flatten().bincount(minlength=24)
    assert len(counts) == 24 and counts.min() > 900 and counts.max() < 1100
    assert torch.equal(orders.sort(2).values, torch.arange(4).expand(8000, 3, 4))


@pytest.mark.parametrize(("grid", "size", "tile"), [(2, 225, 95), (3, 225, 64), (2, 32, 13), (2, 16, 6), (3, 16, 4)])
def test_the_backbone_sees_tiles_and_no_other_part_of_the_image(grid, size, tile):
    shapes = []

    class Recorder(TinyBackbone):
        def forward(self, images):
            shapes.append(images.shape)
            return super().forward(images)

    images = tiny_images(2, size=(size, size + 3))
    for whole, expected in ((False, (2 * grid**2, 3, tile, tile)), (True, (8, 3, grid * tile, grid * tile))):
        supervisor = jigsaw(images, grid=grid, whole=whole, backbone=Recorder())
        supervisor._forward(batch(images))
        assert shapes[-1] == expected
        assert supervisor.cut.jitter and tile + 2 * supervisor.jitter < size // grid  # random positions, and gaps


def test_each_tile_is_standardised_on_its_own():
    images = tiny_images(size=(64, 64)) // 9 + 200
    tiles = jigsaw(images)._tiles(images)  # floats below 0 and above 1, which bytes could not hold
    torch.testing.assert_close(tiles.mean((2, 3, 4)), torch.zeros(16, 4), atol=1e-4, rtol=0)
    torch.testing.assert_close(tiles.std((2, 3, 4), correction=0), torch.ones(16, 4), atol=1e-3, rtol=0)


def test_each_tile_is_made_grey_on_its_own():
    images = (torch.rand(400, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255).byte()
    tiles = jigsaw(images, normalize=(0.5, 0.25))._tiles(images)
    grey = (tiles.amax(2) - tiles.amin(2)).amax((2, 3)) < 1e-3  # (400, 4)
    assert abs(grey.float().mean() - 0.3) < 0.04
    alike = (grey[:, 0] == grey[:, 1]).float().mean()
    assert abs(alike - (0.3**2 + 0.7**2)) < 0.08
    assert not (jigsaw(images, greyscale=0.0, normalize=(0.5, 0.25))._tiles(images).std(2).amax((2, 3)) < 1e-3).any()


def test_each_channel_of_each_tile_is_shifted_on_its_own():
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    images = (10 * rows + columns).expand(500, 3, 9, 9)
    shifted = shift_channels(images, 2, torch.Generator().manual_seed(0))
    corner = shifted[:, :, 0, 0]
    assert torch.equal(shifted, corner[:, :, None, None] + images[:, :, :5, :5])  # whole, without a border
    assert set(corner.flatten().tolist()) == {10.0 * y + x for y in range(5) for x in range(5)}
    assert 0 < (corner[:, 0] == corner[:, 1]).float().mean() < 0.1  # one in 25
    assert shift_channels(images, 0, torch.Generator()) is images


def test_channels_shift_by_two_pixels_of_64_and_stay_where_that_is_less_than_half_a_pixel():
    sizes = [jigsaw(tiny_images(2, size=(s, s)), grid=3) for s in (225, 32)]
    assert [s.jitter for s in sizes] == [2, 0] and [s.cut.tile for s in sizes] == [68, 8]
    assert (
        jigsaw(tiny_images(2, 1, (64, 64)), channel_jitter=0.1).jitter == 0
    )  # a single channel has no other to shift against


def test_features_of_a_tile_do_not_depend_on_its_neighbours():
    supervisor = jigsaw().eval()
    images = tiny_images().float().div(255).requires_grad_()
    tiles = supervisor._tiles(images.detach()).requires_grad_()
    features = supervisor.model.features(tiles.flatten(0, 1)).unflatten(0, (16, 4))
    features[:, 0].square().sum().backward()
    assert tiles.grad[:, 0].abs().sum() > 0 and tiles.grad[:, 1:].abs().sum() == 0


def test_puzzles_of_an_image_share_one_pass_of_its_tiles():
    supervisor, calls = jigsaw(n_permutations_per_image=24), []
    supervisor.model.backbone.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    supervisor._forward(batch())
    assert calls == [16 * 4]


@pytest.mark.parametrize("whole", [False, True])
def test_learns_the_order_of_tiles_of_images_that_it_has_not_seen(whole):
    # The whole puzzle needs features that are not pooled over all positions, such as those of the default backbone.
    backbone = nn.Sequential(TinyBackbone(), nn.Flatten()) if whole else TinyBackbone()
    supervisor = jigsaw(quarters(64), whole=whole, backbone=backbone)
    supervisor.supervise(lr=1e-2, epochs=8, batch_size=32, name="run", progress=False)
    supervisor.eval()
    with torch.no_grad():
        assert supervisor._forward(batch(quarters(32, seed=1))) < 0.2 * math.log(24)


def test_shows_the_image_next_to_its_puzzles(tmp_path, drawn):
    supervisor = jigsaw(n_permutations_per_image=2)
    state = supervisor.generator.get_state()
    assert supervisor.show_inputs(tmp_path / "new" / "puzzles.png", count=3).exists()
    columns, titles = drawn[0]
    assert titles == ["image", "puzzle 1", "puzzle 2"] and [len(column) for column in columns] == [3, 3, 3]
    assert torch.equal(supervisor.generator.get_state(), state)
    with pytest.raises(ValueError, match="there are no images to show"):
        JigsawNetSupervisor(backbone=TinyBackbone()).show_inputs(tmp_path / "none.png")


def test_shows_puzzles_of_the_views_where_these_are_smaller_than_the_images(tmp_path, drawn):
    supervisor = jigsaw(tiny_images(size=(24, 24)), view_size=16, n_permutations_per_image=1)
    supervisor.show_inputs(tmp_path / "puzzles.png", count=2)
    assert [column.shape for column in drawn[0][0]] == [(2, 3, 16, 16)] * 2  # of 16 pixels, not of 24


def test_tiles_follow_the_size_of_the_images():
    jigsaw(tiny_images(size=(32, 32))).supervise(epochs=1, batch_size=16, name="run", progress=False)
    continued = jigsaw(tiny_images(size=(48, 48))).load("run")
    assert continued.tile_size == 20 and continued.network_shape == (3, 32, 32)
    assert torch.isfinite(continued._forward(batch(tiny_images(8, size=(48, 48)))))


def test_an_empty_sequence_is_a_predictor():
    identity = nn.Sequential()
    supervisor = jigsaw(backbone=TinyBackbone(width=6), predictor=identity)
    assert supervisor.model.predictor is identity and torch.isfinite(supervisor._forward(batch()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": 4}, "grid=4 is unknown; pass 2 or 3"),
        ({"n_permutations": 1}, "n_permutations must be an integer of at least 2, got 1 "),
        (
            {"tile": 13},
            r"tile must be a number in \(0, 1\], got 13 \(it is the side of a tile as a fraction of its cell's\)",
        ),
        ({"tile": 0}, r"tile must be a number in \(0, 1\], got 0 "),
        ({"channel_jitter": -0.1}, r"channel_jitter must be a number in \[0, 1\], got -0.1 \(it is the largest shift"),
        ({"greyscale": 2}, r"greyscale must be a number in \[0, 1\], got 2 \(it is the fraction of tiles"),
        ({"n_permutations_per_image": 25}, "=25 different permutations are needed and there are 24; .* from 1 to 24"),
        ({"n_permutations_per_image": 0}, "n_permutations_per_image must be an integer of at least 1, got 0 "),
        ({"images": tiny_images(size=(5, 16)), "grid": 3}, "images of 5 x 16 are too small for 3 x 3 tiles"),
    ],
)
def test_arguments_that_make_no_puzzle_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        jigsaw(**arguments)


def test_the_backbone_is_built_for_images_and_sees_tiles():
    """Images of 96 pixels are not small, so the backbone keeps its stem, although tiles of 40 pixels would be small."""
    supervisor = JigsawNetSupervisor(tiny_images(4, size=(96, 96)), backbone="squeezenet1_1")
    assert supervisor.tile_size == 40 and "3 x 3 stem" not in describe(supervisor.get_backbone())
    small = JigsawNetSupervisor(tiny_images(4, size=(64, 64)), backbone="squeezenet1_1")
    assert "3 x 3 stem for images of 64 x 64" in describe(small.get_backbone())
