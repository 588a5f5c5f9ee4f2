import math

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, pad

from superself import Batch, ContrastivePredictiveCodingSupervisor
from superself.algorithms.cpc import ContextBlock, MaskedContext, default_augment
from superself.augment import recipe
from superself.networks import LayerNorm2d, describe, fresh_copy

from cases import TinyBackbone, tiny_images


def cpc(images=None, **arguments):
    images = tiny_images() if images is None else images
    arguments = {"backbone": TinyBackbone(images.shape[1]), "patch_size": 4, "augment": "plain", "seed": 0, **arguments}
    return ContrastivePredictiveCodingSupervisor(images, **arguments)


def batch(n=16, size=(16, 16), seed=0):
    return Batch(tiny_images(n, size=size, seed=seed), torch.arange(n))


def grid_of(supervisor, images):
    """Features (B, R, C, D) of the patches of images, with gradients down to the pixels."""
    size, stride = supervisor.patches.size, supervisor.patches.stride
    patches = images.unfold(2, size, stride).unfold(3, size, stride).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    return supervisor.model.features(patches).unflatten(0, (-1, *supervisor.grid))


def test_loss_equals_the_loop_over_directions_distances_and_patches():
    """The slow version turns no grid: the target of each prediction is found by its row and column."""
    supervisor = cpc(tiny_images(size=(12, 16)), steps=2)
    rows, columns = supervisor.grid
    images = supervisor.preprocessing(tiny_images(3, size=(12, 16)))
    z = grid_of(supervisor, images)
    targets = supervisor.model.predictor(z.reshape(-1, 16))
    order = {"rows": list(range(rows))[::-1], "columns": list(range(columns))[::-1]}
    seen = [  # the grid as the context network gets it, and the target of what it predicts at (i, j) from k before
        (z, lambda i, j, k: (i + k, j)),
        (z[:, order["rows"]], lambda i, j, k: (rows - 1 - i - k, j)),
        (z.permute(0, 2, 1, 3), lambda i, j, k: (j, i + k)),
        (z[:, :, order["columns"]].permute(0, 2, 1, 3), lambda i, j, k: (j, columns - 1 - i - k)),
    ]
    losses = []
    for direction, (grid, position) in enumerate(seen):
        contexts = supervisor.context(grid)
        weights = supervisor.linear[direction].weight.view(2, 64, 256)
        biases = supervisor.linear[direction].bias.view(2, 64)
        for n, k in enumerate((2, 3)):
            found = []
            for b in range(3):
                for i in range(grid.shape[1] - k):
                    for j in range(grid.shape[2]):
                        row, column = position(i, j, k)
                        scores = 0.1 * targets @ (weights[n] @ contexts[b, i, j] + biases[n])
                        sought = (b * rows + row) * columns + column
                        found.append(torch.logsumexp(scores, 0) - scores[sought])
            losses.append(sum(found) / len(found))
    slow = sum(losses) / len(losses)
    assert supervisor._forward(batch(3, (12, 16))).item() == pytest.approx(slow.item(), rel=1e-4)


@pytest.mark.parametrize(("size", "stride"), [(8, 4), (7, 3), (5, 5)])
def test_a_prediction_depends_on_all_of_one_side_and_on_no_pixel_of_its_target(size, stride):
    supervisor = cpc(patch_size=size, stride=stride, context=MaskedContext(16, 8))
    pixels = supervisor.preprocessing(tiny_images(1)).requires_grad_()
    whole = [(n - 1) * stride + size for n in supervisor.grid]  # pixels that the patches cover
    seen = []
    for found, sought in supervisor._predictions(grid_of(supervisor, pixels)):
        for prediction, position in zip(found, sought.tolist(), strict=True):
            top, left = (stride * i for i in divmod(position, supervisor.grid[1]))
            (gradient,) = torch.autograd.grad(prediction.square().sum(), pixels, retain_graph=True)
            rows, columns = (gradient[0].abs().sum((0, d)).nonzero().squeeze(1) for d in (2, 1))
            seen += ["above"] * (rows.max() < top and len(columns) == whole[1])
            seen += ["below"] * (rows.min() >= top + size and len(columns) == whole[1])
            seen += ["left"] * (columns.max() < left and len(rows) == whole[0])
            seen += ["right"] * (columns.min() >= left + size and len(rows) == whole[0])
    count = sum(len(found) for found, _ in supervisor._predictions(grid_of(supervisor, pixels)))
    assert len(seen) == count and all(seen.count(side) == count / 4 for side in ("above", "below", "left", "right"))


def test_the_nearest_target_is_the_first_patch_that_shares_no_pixel_with_the_context():
    assert [list(k) for k in cpc(patch_size=4, stride=2, steps=2).distances] == [[2, 3]] * 4
    assert [list(k) for k in cpc(patch_size=5, stride=2, steps=2).distances] == [[3, 4]] * 4  # 80 by 36 in the paper
    assert [list(k) for k in cpc(patch_size=4, stride=4, steps=9).distances] == [[1, 2, 3]] * 4


def test_a_context_depends_on_its_row_and_those_above_and_on_nothing_else():
    torch.manual_seed(0)
    context = MaskedContext(6, width=16, blocks=2)
    z = torch.randn(1, 5, 9, 6, requires_grad=True)
    optimizer = torch.optim.Adam(context.parameters(), lr=0.01)
    for _ in range(2):  # before a step, and after it
        contexts = context(z)
        for i in range(5):
            for j in range(9):
                (gradient,) = torch.autograd.grad(contexts[0, i, j].sum(), z, retain_graph=True)
                used = gradient[0].abs().sum(-1) > 0
                reach = torch.zeros(5, 9, dtype=torch.bool)
                reach[max(0, i - 2) : i + 1, max(0, j - 2) : j + 3] = True
                assert torch.equal(used, reach)
        contexts.square().sum().backward()
        optimizer.step()


def test_a_block_is_the_convolutions_of_the_paper():
    block = ContextBlock(4)
    c = torch.randn(2, 4, 3, 5)  # (B, width, R, C), as convolutions have it
    names = {"enter": (1, 1), "sideways": (1, 3), "up": (2, 1), "leave": (1, 1)}
    weights = {name: getattr(block, name).weight.view(4, *size, 4).permute(0, 3, 1, 2) for name, size in names.items()}
    biases = {name: getattr(block, name).bias for name in names}
    x = conv2d(c, weights["enter"], biases["enter"]).relu()
    x = pad(conv2d(x, weights["sideways"], biases["sideways"], padding=(0, 1)), (0, 0, 1, 0))
    x = conv2d(conv2d(x, weights["up"], biases["up"]).relu(), weights["leave"], biases["leave"])
    assert torch.allclose(block(c.permute(0, 2, 3, 1)), x.permute(0, 2, 3, 1), atol=1e-6)


def test_five_blocks_reach_all_rows_and_columns_of_a_grid():
    z = torch.randn(1, 7, 7, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(MaskedContext(4)(z)[0, 4, 3].sum(), z)
    assert (gradient[0, :5].abs().sum(-1) > 0).all() and not gradient[0, 5:].any()


def test_every_patch_of_the_batch_is_a_candidate():
    seen = []

    def loss(scores, sought):
        seen.append((scores, sought))
        return scores.mean()

    cpc(patch_size=8, loss=loss)._forward(batch(5))
    assert [s.shape for s, _ in seen] == [(5 * 3, 5 * 9)] * 4
    assert [sorted(t.tolist())[:4] for _, t in seen] == [[6, 7, 8, 15], [0, 1, 2, 9], [2, 5, 8, 11], [0, 3, 6, 9]]


def test_the_chance_level_is_the_loss_of_identical_targets():
    supervisor = cpc(predictor=Constant(8), patch_size=8)
    assert supervisor.chance_loss is None
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    assert supervisor.chance_loss == math.log(8 * 9)
    assert supervisor._forward(batch(8)).item() == pytest.approx(math.log(8 * 9))


class Constant(nn.Module):
    """Every patch gets the same target."""

    def __init__(self, width):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(width))

    def forward(self, z):
        return self.values.expand(len(z), -1)


def test_each_patch_is_augmented_on_its_own():
    seen = []

    def augment(patches):
        seen.append(patches.clone())
        return patches

    cpc(augment=augment, patch_size=8)._forward(batch(3))
    assert seen[0].shape == (3 * 9, 3, 8, 8)
    inputs = cpc(augment="cpc", patch_size=8)._inputs(torch.full((2, 3, 16, 16), 200, dtype=torch.uint8))
    assert len({tuple(patch.flatten().tolist()) for patch in inputs}) > 9


def test_patches_are_drawn_from_the_generator_of_the_run():
    supervisor = cpc(augment="cpc", patch_size=8)
    supervisor.generator.manual_seed(3)
    first = supervisor._inputs(tiny_images())
    supervisor.generator.manual_seed(3)
    torch.rand(5)
    assert torch.equal(first, supervisor._inputs(tiny_images()))


def test_batch_norm_of_any_backbone_becomes_layer_norm_by_default():
    own = TinyBackbone()
    assert cpc(backbone=own).model.backbone is own
    assert isinstance(own.layers[1], LayerNorm2d) and isinstance(own.layers[4], LayerNorm2d)
    kept = cpc(backbone=TinyBackbone(), layer_norm=False).model.backbone
    assert isinstance(kept.layers[1], nn.BatchNorm2d)
    named = cpc(backbone="resnet18").model.backbone
    assert not [m for m in [*named.modules(), *fresh_copy(named).modules()] if isinstance(m, nn.BatchNorm2d)]
    assert describe(named).endswith("layer norm") and describe(fresh_copy(named)) == describe(named)


@pytest.mark.parametrize(
    ("sides", "grid"), [((64, 64), (7, 7)), ((96, 96), (7, 7)), ((256, 256), (7, 7)), ((225, 225), (7, 7))]
)
def test_the_grid_follows_the_image(sides, grid):
    images = torch.zeros(1, 1, *sides, dtype=torch.uint8)
    supervisor = ContrastivePredictiveCodingSupervisor(images, backbone=TinyBackbone(1))
    assert supervisor.grid == grid and supervisor.patches.stride == sides[0] // 8


def test_small_patches_are_augmented_less_and_large_ones_as_in_the_paper():
    kinds = {size: len(recipe(default_augment(size), size, views=1).transforms[0].transforms) for size in (16, 32, 64)}
    assert default_augment(64) == "cpc" and kinds[16] == kinds[32] == 3 < kinds[64]


def test_learns_to_find_patches_of_images_that_it_has_not_seen():
    """Each image has another colour: it can be recognised among 8, and so can the row of a patch."""
    images = tiny_images(64)
    supervisor = cpc(images, patch_size=8, context=MaskedContext(16, 32, blocks=2))
    supervisor.supervise(lr=1e-2, epochs=10, batch_size=8, name="run", progress=False)
    supervisor.eval()
    with torch.no_grad():
        loss = supervisor._forward(batch(8, seed=1)).item()
    assert loss < 0.75 * supervisor.chance_loss


def test_show_inputs_draws_the_original_its_patches_and_what_the_network_gets(tmp_path, drawn):
    supervisor = cpc(augment="cpc", patch_size=8)
    state = supervisor.generator.get_state()
    assert supervisor.show_inputs(tmp_path / "new" / "inputs.png", count=3).exists()
    columns, titles = drawn[0]
    assert titles == ["image", "its patches", "patches as the network gets them"]
    assert [column.shape for column in columns] == [(3, 3, 3 * (8 + 2), 3 * (8 + 2))] * 3
    assert torch.equal(supervisor.generator.get_state(), state)
    assert supervisor.show_inputs(tmp_path / "other.png", dataset=tiny_images(2), count=2).exists()


def test_patches_follow_the_images_and_the_distances_of_the_stored_run_are_used():
    """3 x 3 patches on 32 pixels and 5 x 5 on 48: 9 images of 25 patches are as many as 25 images of 9."""
    settings = {"epochs": 1, "batch_size": 8, "progress": False}
    small = cpc(tiny_images(size=(32, 32)), patch_size=None).supervise(name="small", **settings)
    assert small.grid == (3, 3) and [list(k) for k in small.distances] == [[2]] * 4
    assert [list(k) for k in cpc(tiny_images(size=(48, 48)), patch_size=None).distances] == [[2, 3, 4]] * 4

    larger = cpc(tiny_images(size=(48, 48)), patch_size=None, scale=0.1).load("small")
    assert larger.grid == (5, 5) and [list(k) for k in larger.distances] == [[2]] * 4
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(larger.linear, small.linear, strict=True))
    for n in (8, 9):
        torch.manual_seed(0)
        data = batch(n, (48, 48))
        z = grid_of(larger, larger.preprocessing(data.images))
        assert z.shape[:3] == (n, 5, 5)
        contexts = larger.linear[0](larger.context(z))  # (n, 5, 5, E), from above
        found, sought = larger._predictions(z)[0]
        assert torch.allclose(found, contexts[:, :3].flatten(0, 2))
        positions = [[b, i, j] for b in range(n) for i in range(2, 5) for j in range(5)]
        assert sought.tolist() == [(b * 5 + i) * 5 + j for b, i, j in positions]
        alone = [larger._predictions(image[None])[0][0] for image in z]
        assert torch.allclose(found, torch.cat(alone), atol=1e-5)  # no prediction mixes patches of two images
        assert torch.isfinite(larger._forward(data))
    larger.supervise(name="larger", **settings)


def test_smaller_images_use_the_weights_of_the_distances_that_they_have():
    larger = cpc(tiny_images(size=(48, 48)), patch_size=None)
    larger.supervise(epochs=1, batch_size=8, name="larger", progress=False)
    small = cpc(tiny_images(size=(32, 32)), patch_size=None).load("larger")
    assert [list(k) for k in small.distances] == [[2]] * 4
    z = grid_of(small, small.preprocessing(tiny_images(3, size=(32, 32))))
    found, _ = small._predictions(z)[0]
    assert torch.allclose(found, small.linear[0](small.context(z))[:, :1, :, :64].flatten(0, 2))  # of W_2, W_3, W_4


def test_weights_are_matched_by_distance_and_not_by_their_order():
    """Patches of 5 pixels every 2 have no k = 2, the first of the stored run."""
    cpc(tiny_images(size=(48, 48)), patch_size=None).supervise(epochs=1, batch_size=8, name="run", progress=False)
    images = tiny_images(8, size=(11, 21))
    supervisor = cpc(images, patch_size=None)
    assert [list(k) for k in supervisor.distances] == [[3], [3], [3, 4, 5], [3, 4, 5]]
    supervisor.load("run")
    assert supervisor.distances == [[3], [3], [3, 4], [3, 4]]
    z = grid_of(supervisor, supervisor.preprocessing(images))  # (8, 4, 9, D)
    found, _ = supervisor._predictions(z)[0]
    weights = supervisor.linear[0].weight.view(3, 64, 256)[1]  # of W_2, W_3, W_4
    biases = supervisor.linear[0].bias.view(3, 64)[1]
    assert torch.allclose(found, (supervisor.context(z)[:, :1] @ weights.T + biases).flatten(0, 2), atol=1e-6)


def test_a_run_without_a_common_distance_is_refused():
    cpc(tiny_images(size=(32, 32)), patch_size=None).supervise(epochs=1, batch_size=8, name="run", progress=False)
    message = "distances of 2, and patches of 5 pixels every 2 pixels on images of 11 x 12 have 3; pass patch_size and"
    with pytest.raises(ValueError, match=message):
        cpc(tiny_images(size=(11, 12)), patch_size=None).load("run")


def test_patches_are_cut_from_views_smaller_than_the_images():
    seen = []

    def keep(patches):
        seen.append(patches.clone())
        return patches

    supervisor = cpc(tiny_images(size=(24, 24)), patch_size=8, view_size=16, augment=keep)
    whole = cpc(tiny_images(), patch_size=8)
    assert supervisor.grid == whole.grid == (3, 3)
    supervisor._forward(batch(9, (24, 24)))
    middle = tiny_images(9, size=(24, 24))[..., 4:20, 4:20] / 255
    assert torch.allclose(seen[0], whole.patches(middle).flatten(0, 1))


def test_patches_are_cut_from_the_views_of_a_collate_function():
    seen = []
    supervisor = cpc(patch_size=8, augment=lambda patches: seen.append(patches.clone()) or patches)
    supervisor._forward(Batch(tiny_images(), views=[torch.zeros(16, 3, 16, 16)]))
    assert not seen[0].any()


def test_views_of_another_size_than_the_grid_are_not_misread():
    with pytest.raises(RuntimeError, match="unflatten"):
        cpc(patch_size=8)._forward(Batch(tiny_images(9), views=[torch.zeros(9, 3, 24, 24)]))  # 25 patches of each


def test_an_empty_sequence_is_a_predictor():
    identity = nn.Sequential()
    supervisor = cpc(predictor=identity)
    assert supervisor.model.predictor is identity and torch.isfinite(supervisor._forward(batch()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"patch_size": 12},
            "patches of 12 pixels every 6 pixels give a grid of 1 x 1 on images of 16 x 16, and 3 x 3 is the least",
        ),
        ({"steps": 0}, r"steps must be an integer of at least 1, got 0 \(it is the number of distances to predict\)"),
        ({"patch_size": 0}, r"patch_size must be an integer of at least 1, got 0 \(it is a length in pixels\)"),
        ({"stride": 0}, r"stride must be an integer of at least 1, got 0 \(it is a length in pixels\)"),
        ({"scale": 0}, r"scale must be a number above 0, got 0 \(it multiplies the scores\)"),
    ],
)
def test_grids_without_a_target_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cpc(**arguments)


def test_the_backbone_is_built_for_images_and_sees_patches():
    """With the stem for small images, the 49 patches of an image of 96 pixels would cost sixteen times as much."""
    supervisor = ContrastivePredictiveCodingSupervisor(tiny_images(4, size=(96, 96)), backbone="squeezenet1_1")
    assert supervisor.grid == (7, 7) and "3 x 3 stem" not in describe(supervisor.get_backbone())
