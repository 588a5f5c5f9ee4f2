"""Changes of tone that need no colour: solarize, posterize, invert, autocontrast, equalize, sharpness."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from superself.augment.transform import Transform, as_range, per_sample, uniform_between


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Pixels from the threshold (B,) on inverted."""
    return torch.where(images >= per_sample(threshold, images), 1 - images, images)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """The highest ``bits`` (B,) of the eight bits of each pixel."""
    step = per_sample(2 ** (8 - bits), images)
    return torch.floor((255 * images).round_() / step) * step / 255


def autocontrast(images: Tensor) -> Tensor:
    """Every channel stretched to [0, 1]; a constant one stays as it is."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = low == high
    return (images - torch.where(flat, 0.0, low)) / torch.where(flat, 1.0, high - low)


class RandomSolarize(Transform):
    """Pixels from ``threshold`` on inverted; a number, or bounds from which each sample draws one."""

    def __init__(self, threshold: float | tuple[float, float] = 0.5, p: float = 0.5) -> None:
        super().__init__(1, p)
        self.threshold = as_range(threshold)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return solarize(images, uniform_between(numbers[:, 0], *self.threshold))


class RandomPosterize(Transform):
    """Only the highest ``bits`` of the eight kept; a number, or bounds (both included)."""

    def __init__(self, bits: int | tuple[int, int] = (4, 8), p: float = 0.5) -> None:
        super().__init__(1, p)
        self.bits = as_range(bits)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return posterize(images, uniform_between(numbers[:, 0], self.bits[0], self.bits[1] + 1).floor())


class RandomInvert(Transform):
    """The negative."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(0, p)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return 1 - images


class RandomAutocontrast(Transform):
    """Every channel stretched to the whole range."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(0, p)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return autocontrast(images)


class RandomEqualize(Transform):
    """The histogram of every channel made flat, at 8 bits."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(0, p)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        channels = (255 * images).round_().clamp_(0, 255).byte().flatten(0, 1)[:, None]  # (B C, 1, H, W)
        return tv.equalize(channels).view_as(images) / 255


class Normalize(Transform):
    """(pixel - mean) / std, one value a channel; the last step."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if min(std) <= 0:
            raise ValueError(f"Normalize has std={tuple(std)}; pass numbers above 0.")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        if images.shape[1] != len(self.mean):
            raise ValueError(
                f"Normalize has {len(self.mean)} means for images of {images.shape[1]} channels; pass one for each."
            )
        return images.sub_(self.mean.to(images.device)).div_(self.std.to(images.device))
