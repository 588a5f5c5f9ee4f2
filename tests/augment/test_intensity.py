from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from superself.augment import (
    Normalize,
    RandomAutocontrast,
    RandomEqualize,
    RandomInvert,
    RandomPosterize,
    RandomSolarize,
)
from superself.augment.intensity import posterize, solarize


def images_of(count: int, channels: int = 3) -> torch.Tensor:
    """Bytes, the first a constant."""
    images = torch.randint(20, 230, (count, channels, 9, 7), generator=torch.Generator().manual_seed(count)).byte()
    images[0] = 77
    return images


def test_solarize_equals_torchvisions():
    images = images_of(4) / 255
    thresholds = torch.tensor([0.0, 0.3, 0.5, 1.0])
    for image, threshold, view in zip(images, thresholds.tolist(), solarize(images, thresholds), strict=True):
        torch.testing.assert_close(view, tv.solarize(image, threshold))


def test_posterize_equals_torchvisions_on_bytes():
    images = images_of(8)
    bits = torch.arange(1, 9)
    for image, b, view in zip(images, bits.tolist(), posterize(images / 255, bits), strict=True):
        torch.testing.assert_close(view * 255, tv.posterize(image, b).float())


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_what_has_no_parameter_equals_torchvisions(channels):
    images = images_of(4, channels)
    torch.testing.assert_close(RandomInvert(1.0)(images), tv.invert(images) / 255)
    stretched = torch.cat([tv.autocontrast(images[:, c : c + 1] / 255) for c in range(channels)], 1)
    torch.testing.assert_close(RandomAutocontrast(1.0)(images), stretched, atol=1e-6, rtol=0)
    equalized = torch.cat([tv.equalize(images[:, c : c + 1]) for c in range(channels)], 1)
    torch.testing.assert_close(RandomEqualize(1.0)(images), equalized / 255)


def test_parameters_are_drawn_between_their_bounds():
    ramp = torch.linspace(0, 1, 256).view(1, 1, 1, 256).expand(4000, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([len(view.unique()) for view in RandomPosterize((4, 6), p=1.0)(ramp, generator)[:600]])
    values, counts = levels.unique(return_counts=True)
    assert values.tolist() == [16, 32, 64] and counts.min() > 150
    inverted = (RandomSolarize((0.2, 0.6), p=1.0)(ramp, generator) != ramp).float().mean((1, 2, 3))
    assert 0.39 < inverted.min() < 0.42 and 0.78 < inverted.max() < 0.81 and abs(inverted.mean() - 0.6) < 0.01


def test_normalize_equals_torchvisions():
    images = images_of(3) / 255
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    torch.testing.assert_close(Normalize(mean, std)(images), tv.normalize(images, mean, std))
    with pytest.raises(ValueError, match="3 means for images of 1 channels"):
        Normalize(mean, std)(images[:, :1])
    with pytest.raises(ValueError, match=r"positive values of std, got \(0.5, 0.0\)"):
        Normalize((0.0, 0.0), (0.5, 0.0))
