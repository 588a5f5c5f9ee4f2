import copy
import math
import os
import signal

import pytest
import torch
from torch import nn

from superself import Batch, IICSupervisor
from superself.augment import ColorJitter, RandomHorizontalFlip, RandomResizedCrop, recipe
from superself.data import open_images
from superself.losses import IICLoss

from cases import TinyBackbone, tiny_images

SETTINGS = {"batch_size": 8, "name": "run", "progress": False, "precision": "32-true"}


def two_views(images):
    """The image, and the image upside down: no randomness."""
    return [images, images.flip(2)]


def iic(images=None, cls=IICSupervisor, **arguments):
    given = {"backbone": TinyBackbone(), "seed": 0, "augment": two_views, "heads": 2, "repeats": 1}
    given |= {"clusters": 3, "over_clusters": 6}
    return cls(tiny_images() if images is None else images, **{**given, **arguments})


def batch():
    return Batch(tiny_images(), torch.arange(16))


def logits_of(heads, supervisor, view):
    features = supervisor.model.features(supervisor.preprocessing(view / 255))
    return torch.stack([head(features) for head in heads])


def test_loss_is_the_mean_over_the_heads_whose_turn_it_is():
    for over_clusters, heads in ((6, "over_heads"), (None, "model.predictor")):
        supervisor = iic(over_clusters=over_clusters)
        with torch.no_grad():
            for head in supervisor.get_submodule(heads):
                head.weight.mul_(50)  # so that there is some information
        first, second = (
            logits_of(supervisor.get_submodule(heads), supervisor, v) for v in two_views(tiny_images().float())
        )
        expected = sum(IICLoss()(a, b) for a, b in zip(first, second, strict=True)) / 2
        assert supervisor._forward(batch()).item() == pytest.approx(expected.item(), rel=1e-4)
        assert expected < -0.01


def test_heads_take_turns_by_epochs_and_those_that_wait_do_not_change():
    moved = []

    class Observed(IICSupervisor):
        def _before_epoch(self, epoch):
            self.kept = copy.deepcopy(self.state_dict())

        def _after_step(self):
            super()._after_step()
            if self.step % 2:  # the last step of an epoch
                now = self.state_dict()
                names = ("over_heads.0.weight", "model.predictor.0.weight", "model.backbone.layers.0.weight")
                moved.append([not torch.equal(now[name], self.kept[name]) for name in names])

    iic(cls=Observed, turns=(1, 2)).supervise(epochs=4, weight_decay=0.1, **SETTINGS)
    assert moved == [[True, False, True], [False, True, True], [False, True, True], [True, False, True]]


def test_a_run_resumed_within_an_epoch_goes_on_with_the_heads_whose_turn_it_is():
    images = tiny_images(20)  # three steps in an epoch
    whole = iic(images).supervise(epochs=3, **{**SETTINGS, "name": "whole"})

    class Stopped(IICSupervisor):
        def _after_step(self):
            super()._after_step()
            if self.step == 3:  # the first step of the second epoch
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        iic(images, Stopped).supervise(epochs=3, **SETTINGS)
    resumed = iic(images).supervise(epochs=3, resume=True, **SETTINGS)
    assert all(torch.equal(resumed.state_dict()[name], value) for name, value in whole.state_dict().items())


def test_repeats_pair_each_image_several_times_with_views_of_their_own():
    seen = []

    class Seeing(nn.Module):
        def forward(self, first, second):
            seen.append((first, second))
            return IICLoss()(first, second)

    supervisor = iic(repeats=3, loss=Seeing(), augment="iic")
    supervisor._forward(batch())
    first, second = seen[0]
    assert first.shape == second.shape == (2, 3 * 16, 6)
    parts = [*first.chunk(3, 1), *second.chunk(3, 1)]
    assert not any(torch.equal(a, b) for i, a in enumerate(parts) for b in parts[:i])


def test_every_head_starts_from_weights_of_its_own():
    supervisor = iic(heads=3)
    assert len(supervisor.model.predictor) == len(supervisor.over_heads) == 3
    assert not torch.equal(supervisor.model.predictor[0].weight, supervisor.model.predictor[1].weight)
    assert supervisor.over_heads[0].out_features == 6 and supervisor.model.predictor[0].out_features == 3


def test_mutual_information_and_clusters_used_are_noted_for_both_kinds_of_heads():
    noted = {}

    class Noting(IICSupervisor):
        def note(self, name, value):
            noted[name] = value

    for over_clusters, kind in ((6, "over_"), (None, "")):
        supervisor = iic(cls=Noting, over_clusters=over_clusters, lamb=2.0)
        supervisor._forward(batch())
        heads = supervisor.over_heads or supervisor.model.predictor
        first, second = (logits_of(heads, supervisor, v) for v in two_views(tiny_images().float()))
        information = [-IICLoss()(a, b).item() for a, b in zip(first, second, strict=True)]
        assert noted[f"{kind}mutual_information"].tolist() == pytest.approx(information, abs=1e-5)
        used = [len(logits.argmax(1).unique()) for logits in first]
        assert noted[f"{kind}clusters_used"].tolist() == used
    assert len(noted) == 4


class Brightness(nn.Module):
    """The mean of the image."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return images.flatten(1).mean(1, keepdim=True) * self.scale


def test_finds_clusters_that_views_have_in_common_and_assigns_images_to_them():
    images = torch.cat([tiny_images(20) // 8, 255 - tiny_images(20, seed=3) // 8])  # dark and bright ones
    supervisor = iic(images, clusters=2, over_clusters=None, backbone=Brightness(), augment="iic")
    supervisor.supervise(lr=0.1, epochs=15, **SETTINGS)
    found = supervisor.assign(images)
    assert found.shape == (40,) and found.dtype == torch.int64
    assert found[:20].unique().numel() == found[20:].unique().numel() == 1 and found[0] != found[20]
    assert supervisor._forward(supervisor.images.batch(torch.arange(40))).item() == pytest.approx(-math.log(2), abs=0.1)


def test_assign_takes_the_head_with_the_most_information_and_says_which_images_cannot_be_read():
    images = tiny_images(40).float() / 255
    images[7] = math.nan
    supervisor = iic(tiny_images(40), heads=3)
    supervisor.head_information.copy_(torch.tensor([0.1, 0.5, 0.3]))
    best, other = supervisor.assign(images), supervisor.assign(images, head=0)
    readable = torch.arange(40) != 7
    supervisor.eval()
    expected = logits_of(supervisor.model.predictor, supervisor, tiny_images(40)).argmax(2)
    assert torch.equal(best[readable], expected[1][readable]) and torch.equal(other[readable], expected[0][readable])
    assert best[7] == other[7] == -1
    assert torch.equal(supervisor.assign(images, batch_size=7), best)
    with pytest.raises(ValueError, match="head must be an integer of at most 2, got 3"):
        supervisor.assign(images, head=3)


def test_assign_leaves_modes_and_averages_as_they_are_and_works_after_load_without_a_data_set():
    supervisor = iic().supervise(epochs=2, **SETTINGS)
    before = copy.deepcopy(supervisor.state_dict())
    found = supervisor.assign(tiny_images())
    assert supervisor.training and all(torch.equal(before[n], v) for n, v in supervisor.state_dict().items())
    loaded = IICSupervisor(backbone=TinyBackbone()).load("run")
    assert torch.equal(loaded.assign(tiny_images()), found)


def test_the_mean_information_of_heads_moves_after_steps_of_the_heads_for_clusters_only():
    supervisor = iic()
    supervisor._forward(batch())
    supervisor._after_step()
    assert not supervisor.head_information.any()
    supervisor = iic(over_clusters=None)
    supervisor._forward(batch())
    assert not supervisor.head_information.any()
    supervisor._after_step()
    assert supervisor.head_information.all()


def test_with_sobel_a_change_of_brightness_changes_no_assignment():
    supervisor = iic(sobel=True).eval()
    images = torch.rand(2, 3, 16, 16) / 2
    features = [supervisor.get_backbone()(supervisor.preprocessing(shifted)) for shifted in (images, images + 0.3)]
    assert torch.allclose(*features, atol=1e-4)


def test_chance_level_is_zero_and_unknown_where_the_marginals_have_another_weight():
    assert iic().chance_loss == 0 and iic(lamb=1.5).chance_loss is None
    assert iic(lamb=1.5).loss.lamb == 1.5


def test_the_recipe_has_the_numbers_of_the_authors_code():
    first, second = recipe({"name": "iic", "scale": (0.39, 0.39)}, 32, views=2).transforms
    assert isinstance(first, RandomResizedCrop) and first.ratio == (1, 1) and first.scale == (0.39, 0.39)
    crop, flip, jitter = second.transforms
    assert isinstance(crop, RandomResizedCrop) and isinstance(flip, RandomHorizontalFlip) and flip.p == 0.5
    assert isinstance(jitter, ColorJitter) and jitter.factors == [(0.6, 1.4)] * 3 and jitter.hue == (-0.125, 0.125)


def test_wrong_arguments_are_refused():
    for name, value in (("clusters", 1), ("over_clusters", 1), ("heads", 0), ("repeats", 0)):
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least .*, got {value}"):
            iic(**{name: value})
    with pytest.raises(ValueError, match="turns=.* must be two numbers of epochs"):
        iic(turns=(1,))
    with pytest.raises(ValueError, match="each of turns must be an integer of at least 1, got 0"):
        iic(turns=(0, 1))
    with pytest.raises(ValueError, match="lamb must be"):
        iic(lamb=0)


def test_images_are_assigned_as_they_were_read_in_the_run():
    raw = tiny_images().float() * 100
    supervisor = iic(raw, norm=25500.0).eval()
    assert torch.equal(supervisor.assign(raw), supervisor.assign(open_images(raw, norm=25500.0)))
    features = supervisor.model.features(supervisor.preprocessing(raw))
    assert torch.equal(supervisor.assign(raw, head=1), supervisor.model.predictor[1](features).argmax(1))
