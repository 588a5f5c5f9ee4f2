"""The rotation proxy: images stay on one side of the split, and rotations are told apart only where features show them."""

import pytest
import torch
from torch import nn

from superself.evaluation import Features, RotationProxy, linear_accuracy, rotated_features, rotation_accuracy
from superself.evaluation import rotation_proxy as module
from superself.evaluation.rotation_proxy import split_images
from superself.evaluation.subject import Subject

from cases import TinyBackbone, tiny_images
from tensors import noise


class Corners(nn.Module):
    """The mean of each quarter of the first channel: shows which way up the image is."""

    def forward(self, images):
        return nn.functional.adaptive_avg_pool2d(images[:, :1], 2).flatten(1)


class Mean(nn.Module):
    """The mean of each channel, which rotations do not change."""

    def forward(self, images):
        return images.mean((2, 3))


def test_rotations_are_told_apart_only_by_features_that_show_them():
    images = tiny_images(60)  # from dark at the top to bright at the bottom
    assert rotation_accuracy(rotated_features(Corners(), images)) == 1
    assert rotation_accuracy(rotated_features(Mean(), images)) == pytest.approx(0.25, abs=0.02)


def test_features_are_those_of_the_four_rotations_of_the_middle():
    images = tiny_images(3, size=(16, 22))
    subject = Subject(Corners())
    found = rotated_features(subject, images)
    square = images[:, :, :, 3:19]
    for turns in range(4):
        rotated = subject.preprocessing(torch.rot90(square, turns, (2, 3)))
        torch.testing.assert_close(found[:, turns], Corners()(rotated))


def test_all_rotations_of_an_image_are_on_the_same_side(monkeypatch):
    rotated = torch.arange(30.0).view(30, 1, 1).expand(30, 4, 2)  # features are the number of the image
    sides = []

    def spy(train, test, C):
        sides.append((train, test))
        return 0.5

    monkeypatch.setattr(module, "linear_accuracy", spy)
    assert rotation_accuracy(rotated) == 0.5
    *choosing, (train, test) = sides
    assert len(choosing) == 4 and len(train) == len(test) == 60
    for fitted, asked in sides:
        for part in (fitted, asked):
            numbers, counts = part.features[:, 0].unique(return_counts=True)
            assert (counts == 4).all()
            for number in numbers:  # each rotation once
                assert part.labels[part.features[:, 0] == number].sort().values.tolist() == [0, 1, 2, 3]
        assert not set(fitted.features[:, 0].tolist()) & set(asked.features[:, 0].tolist())
    for fitted, asked in choosing:  # C is chosen on images to be fitted only
        assert not set(torch.cat([fitted.features, asked.features])[:, 0].tolist()) & set(test.features[:, 0].tolist())


def test_it_is_the_linear_accuracy_of_the_rotation():
    rotated = noise(40, 4, 3) + noise(1, 4, 3, seed=1)
    train, test = split_images(rotated, 0.25, seed=3)
    assert len(test) == 10
    labels = torch.arange(4)
    parts = [Features(part.flatten(0, 1), labels.repeat(len(part))) for part in (train, test)]
    assert rotation_accuracy(rotated, 0.1, 0.25, seed=3) == linear_accuracy(*parts, 0.1)


def test_the_split_depends_on_the_seed_only():
    rotated = noise(30, 4, 2)
    assert rotation_accuracy(rotated) == rotation_accuracy(rotated)
    first, again, other = (split_images(rotated, 0.5, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("shape", [(9, 4, 2), (20, 3, 2), (20, 8)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"needs features \(N, 4, D\) of at least 10 images"):
        rotation_accuracy(noise(*shape))


@pytest.mark.parametrize("channels", [1, 4])
def test_the_evaluator_takes_any_channels_and_repeats_itself(channels):
    subject = Subject(TinyBackbone(channels).train())
    evaluator = RotationProxy(tiny_images(30, channels), count=20)
    values = evaluator.evaluate(subject)
    assert values == evaluator.evaluate(subject) and 0 <= values["rotation"] <= 1
    assert values["rotation"] == rotation_accuracy(rotated_features(subject, evaluator.images, 20))
    assert all(part.training for part in subject.backbone.modules())
