import math

import pytest
import torch
from skimage.color import rgb2lab
from torch import nn
from torch.nn.functional import cross_entropy

from superself import Batch, SplitBrainNetSupervisor
from superself.algorithms.splitbrain import ANNEALING, LabBins, ab_grid, lab_to_rgb, rare_bin_weights
from superself.networks import Decoder, LabHalves, PerHalf, Upsampling

from cases import TinyBackbone, tiny_images
from tensors import seeded


def halves():
    return LabHalves(TinyBackbone(1), TinyBackbone(2))


def split_brain(n=16, **arguments):
    return SplitBrainNetSupervisor(tiny_images(n), **{"backbone": halves(), "seed": 0, **arguments})


def lab_of(images):
    return torch.from_numpy(rgb2lab(images.double().numpy() / 255, channel_axis=1))


def test_each_half_predicts_the_channels_of_the_other_and_never_sees_them():
    supervisor = split_brain().eval()
    fed = {}
    for name, half in (("L", supervisor.model.backbone.lightness), ("ab", supervisor.model.backbone.colour)):
        half.register_forward_pre_hook(lambda _, given, name=name: (fed.setdefault(name, given[0].requires_grad_()),))
    ab_logits, l_logits = supervisor.model(tiny_images() / 255)
    assert ab_logits.shape == (16, 261, 4, 4) and l_logits.shape == (16, 50, 4, 4)
    for logits, seen, hidden in ((ab_logits, "L", "ab"), (l_logits, "ab", "L")):
        gradients = torch.autograd.grad(
            logits.square().sum(), [fed[seen], fed[hidden]], retain_graph=True, allow_unused=True
        )
        assert gradients[0].abs().max() > 0 and gradients[1] is None


def test_the_loss_of_the_colours_trains_the_half_that_sees_lightness():
    def colours_only(logits, bins, weights):
        return cross_entropy(logits, bins) if logits.shape[1] == 261 else 0 * logits.detach().sum()

    supervisor = split_brain(loss=colours_only)
    supervisor._forward(Batch(tiny_images())).backward()
    backbone = supervisor.model.backbone
    assert all(p.grad is not None for p in backbone.lightness.parameters())
    assert all(p.grad is None for p in backbone.colour.parameters())


def test_loss_equals_the_sum_of_both_cross_entropies_by_a_loop():
    supervisor = split_brain(4).eval()
    images = tiny_images(4)
    logits = supervisor.model(images / 255)
    ab, _ = ab_grid(10)
    slow = 0.0
    for image, lab in enumerate(lab_of(images)):
        for i in range(4):
            for j in range(4):
                colour = lab[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean((1, 2))
                bins = (colour[1:] - ab).square().sum(1).argmin(), int(colour[0] // 2)
                for half, target in zip(logits, bins, strict=True):
                    slow -= half[image, :, i, j].log_softmax(0)[target].item() / 64
    assert supervisor._forward(Batch(images)).item() == pytest.approx(slow, rel=1e-4)


class Constant(nn.Module):
    """The same logits at every position of every image, all equal at first."""

    def __init__(self, bins):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(bins, 1, 1))

    def forward(self, output):
        return self.logits.expand(len(output), -1, 4, 4)


def test_uniform_logits_give_the_sum_of_the_logarithms_of_the_numbers_of_bins():
    supervisor = split_brain(predictor=PerHalf(Constant(261), Constant(50)))
    loss = supervisor._forward(Batch(tiny_images()))
    assert loss.item() == pytest.approx(math.log(261) + math.log(50))
    assert supervisor.chance_loss < loss.item() - 3  # colours are far from uniform


def reddish_corner(images):
    """The upper left 16 x 16 pixels with half of their green and blue."""
    return images[:, :, :16, :16] * torch.tensor([1.0, 0.5, 0.5]).view(3, 1, 1)


@pytest.mark.parametrize("rebalance", [False, True])
@pytest.mark.parametrize(
    ("size", "options"),
    [(16, {}), (24, {"view_size": 16}), (24, {"view_size": 16, "augment": reddish_corner})],
    ids=["stored images", "smaller views", "augmented views"],
)
def test_chance_level_is_the_loss_of_the_best_constant_prediction(rebalance, size, options):
    heads, images = PerHalf(Constant(261), Constant(50)), tiny_images(32, size=(size, size))
    options = {"backbone": halves(), "predictor": heads, "rebalance": rebalance, "seed": 0, **options}
    supervisor = SplitBrainNetSupervisor(images, **options)
    optimizer = torch.optim.Adam(heads.parameters(), lr=0.5)
    for _ in range(80):
        optimizer.zero_grad()
        loss = supervisor._forward(Batch(images))
        loss.backward()
        optimizer.step()
    assert loss.item() == pytest.approx(supervisor.chance_loss, abs=0.01)


def test_chance_level_is_measured_once_a_run_and_unknown_without_images(monkeypatch):
    supervisor, measured = split_brain(), []
    count = LabBins.frequencies
    monkeypatch.setattr(LabBins, "frequencies", lambda *arguments: measured.append(1) or count(*arguments))
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    assert len(measured) == 1
    assert SplitBrainNetSupervisor(backbone=halves()).load("run").chance_loss is None


def test_chance_level_follows_the_bins_of_a_loaded_run():
    SplitBrainNetSupervisor(tiny_images(), ab_step=20, backbone=halves()).supervise(
        epochs=1, batch_size=8, name="run", progress=False
    )
    supervisor = split_brain()
    fine = supervisor.chance_loss
    assert supervisor.load("run").chance_loss < fine - 0.1


@pytest.mark.parametrize(("step", "count"), [(10, 261), (20, 76), (7.5, None)])
def test_every_colour_has_a_bin_and_all_bins_differ(step, count):
    middles, bin_of_cell = ab_grid(step)
    assert count in (None, len(middles)) and len(middles.unique(dim=0)) == len(middles)
    bins = LabBins(step, 2, (40, 50))
    colours = torch.rand(1, 3, 40, 50, generator=seeded()) * 255
    lab = lab_of(colours).float()
    found, lightness = bins(lab)
    cell = (lab[:, 1:] / step).round() * step
    assert torch.allclose(bins.ab[found].movedim(-1, 1), cell)  # never the nearest of other cells
    assert torch.equal(lightness, (lab[:, 0] / 2).long())
    row = torch.cat([torch.zeros(len(middles), 1), middles], 1).T.view(1, 3, 1, -1)
    assert LabBins(step, 2, (1, len(middles)))(row)[0].flatten().tolist() == list(range(len(middles)))


def test_colours_outside_srgb_get_the_nearest_bin():
    bins = LabBins(10, 2, (1, 1))
    far = torch.tensor([150.0, 300.0, -300.0]).view(1, 3, 1, 1)
    ab, lightness = bins(far)
    cell = torch.tensor([120.0, -120.0])
    assert ab.item() == (bins.ab - cell).square().sum(1).argmin() and lightness.item() == 49


@pytest.mark.parametrize(("ab_step", "l_step", "counts"), [(10, 2, (261, 50)), (20, 5, (76, 20)), (20, 3, (76, 34))])
def test_heads_have_one_logit_per_bin(ab_step, l_step, counts):
    supervisor = split_brain(ab_step=ab_step, l_step=l_step)
    assert tuple(logits.shape[1] for logits in supervisor.model(tiny_images() / 255)) == counts
    assert torch.isfinite(supervisor._forward(Batch(tiny_images())))


@pytest.mark.parametrize(
    ("shape", "size"), [((32, 32), (8, 8)), ((96, 96), (16, 16)), ((225, 150), (16, 11)), ((20, 33), (5, 8))]
)
def test_map_has_a_quarter_of_the_size_of_the_image_and_at_most_the_resolution(shape, size):
    supervisor = SplitBrainNetSupervisor(tiny_images(2, size=shape), backbone=halves())
    assert supervisor.model.eval()(tiny_images(2, size=shape) / 255)[0].shape[2:] == size
    assert supervisor.bins(torch.zeros(1, 3, *shape))[0].shape == (1, *size)


def test_logits_are_linear():
    for part in split_brain().model.predictor.children():
        last = [module for module in part.modules() if not list(module.children())][-1]
        assert type(last) is nn.Conv2d


def test_heads_take_feature_maps_of_backbones_that_have_them():
    assert all(type(head) is Upsampling for head in split_brain().model.predictor.children())
    for name, channels in ((None, 64), ("mobilenet_v3_small", 1024)):
        model = SplitBrainNetSupervisor(tiny_images(2, size=(32, 32)), backbone=name).model
        assert model.predictor.lightness.stages[0][0].in_channels == channels
    pair = (nn.Sequential(nn.Flatten(), nn.Linear(channels * 16 * 16, 6)) for channels in (1, 2))
    vectors = SplitBrainNetSupervisor(tiny_images(2), backbone=tuple(pair)).model
    assert type(vectors.predictor.lightness[-1]) is Decoder and type(vectors.predictor.colour[-1]) is Decoder


def test_a_run_on_images_that_end_in_one_position_goes_on_with_larger_ones():
    run = {"epochs": 1, "batch_size": 8, "progress": False}
    SplitBrainNetSupervisor(tiny_images(size=(4, 4)), backbone=halves()).supervise(name="small", **run)
    larger = SplitBrainNetSupervisor(tiny_images(size=(16, 16)), backbone=halves())
    assert larger.supervise(name="large", pretrained="small", **run).step == 2


def test_rare_colours_weigh_more():
    frequencies = torch.tensor([0.75, 0.25, 0.0, 0.0])
    assert rare_bin_weights(frequencies).tolist() == pytest.approx([1 / (0.375 + 0.125), 1 / (0.125 + 0.125), 8.0, 8.0])
    seen = []

    def noting(logits, bins, weights):
        seen.append(weights)
        return logits.mean()

    split_brain(rebalance=True, loss=noting)._forward(Batch(tiny_images()))
    split_brain(loss=noting)._forward(Batch(tiny_images()))
    assert seen[0].shape == (261,) and seen[1:] == [None, None, None]


def test_annealed_mean_lies_between_the_mean_and_the_most_probable_bin():
    bins = LabBins(10, 2, (1, 1))
    probability = torch.zeros(1, 261, 1, 1)
    probability[0, [3, 200]] = torch.tensor([0.7, 0.3]).view(2, 1, 1)
    l_logits = torch.full((1, 50, 1, 1), -1e9)
    l_logits[0, 10] = 0.0
    ab, lightness = bins.annealed_means(probability.log(), l_logits)
    first = 0.7 ** (1 / ANNEALING) / (0.7 ** (1 / ANNEALING) + 0.3 ** (1 / ANNEALING))
    assert torch.allclose(ab[0, :, 0, 0], first * bins.ab[3] + (1 - first) * bins.ab[200], atol=1e-3)
    assert lightness.item() == 21


def test_lab_to_rgb_undoes_rgb_to_lab():
    colours = torch.rand(2, 3, 5, 7, generator=seeded())
    assert torch.allclose(lab_to_rgb(LabHalves.lab(colours)), colours, atol=1e-3)


@pytest.mark.parametrize("size", [16, 24], ids=["stored", "larger than the views"])
def test_picture_has_five_columns_and_changes_nothing(size, drawn):
    supervisor = SplitBrainNetSupervisor(tiny_images(size=(size, size)), backbone=halves(), view_size=16)
    before = supervisor.generator.get_state()
    assert supervisor.show_reconstruction("pictures/split.png", count=3).stat().st_size > 0
    columns, titles = drawn[0]
    assert titles == ["image", "lightness L", "colour predicted from L", "colour ab", "L predicted from ab"]
    assert [column.shape for column in columns] == [(3, 3, 16, 16)] * 5
    assert torch.equal(supervisor.generator.get_state(), before) and supervisor.training


def test_learns_which_colour_goes_with_a_lightness_in_unseen_images():
    supervisor = SplitBrainNetSupervisor(shaded(64), ab_step=20, l_step=10, backbone=halves(), seed=0)
    supervisor.supervise(lr=1e-2, epochs=12, batch_size=16, name="run", progress=False)
    supervisor.eval()
    with torch.no_grad():
        assert supervisor._forward(Batch(shaded(32, seed=1))) < 0.6 * supervisor.chance_loss


def shaded(n, seed=0):
    """Images of one colour each; brighter ones are redder."""
    level = torch.rand(n, 1, 1, generator=seeded(seed)) * 200
    return torch.stack([30 + level, 20 + level / 2, 60 - level / 4], 1).expand(-1, -1, 16, 16).to(torch.uint8)


@pytest.mark.parametrize("arguments", [{"ab_step": 0}, {"ab_step": 200}, {"l_step": 0}, {"l_step": 80}])
def test_sizes_of_bins_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="pass ab_step from 2 to 100, and l_step above 0 and up to 50"):
        split_brain(**arguments)


def test_a_resolution_below_1_is_refused():
    with pytest.raises(ValueError, match=r"resolution must be an integer of at least 1, got 0 \(it is the longer side"):
        split_brain(resolution=0)


def test_normalize_and_grey_images_are_refused():
    with pytest.raises(ValueError, match="normalize=.* leave it out"):
        split_brain(normalize=(0.5, 0.5))
    with pytest.raises(ValueError, match="4 channels"):
        SplitBrainNetSupervisor(tiny_images(channels=4))
