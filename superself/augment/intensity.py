"""Changes of intensity, channel by channel: solarize, posterize, invert, autocontrast, equalize, normalise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from superself.augment.transform import Transform, as_range, per_sample, uniform_between


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts pixels at or above the threshold (B,)."""
    return torch.where(images >= per_sample(threshold, images), 1 - images, images)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps the highest ``bits`` (B,) of the eight bits of each pixel."""
    step = per_sample(2 ** (8 - bits), images)
    return torch.floor((255 * images).round_() / step) * step / 255


def autocontrast(images: Tensor) -> Tensor:
    """Stretches each channel to [0, 1]; a constant channel is kept."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = low == high
    return (images - torch.where(flat, 0.0, low)) / torch.where(flat, 1.0, high - low)


class RandomSolarize(Transform):
    """Pixels at or above a threshold inverted.

    Args:
        threshold: bounds, or one number for all samples.
        p: probability for each sample.
    """

    def __init__(self, threshold: float | tuple[float, float] = 0.5, p: float = 0.5) -> None:
        super().__init__(1, p)
        self.threshold = as_range(threshold)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return solarize(images, uniform_between(numbers[:, 0], *self.threshold))


class RandomPosterize(Transform):
    """Only the highest bits of each pixel kept, of eight.

    Args:
        bits: bounds, both included, or one number for all samples.
        p: probability for each sample.
    """

    def __init__(self, bits: int | tuple[int, int] = (4, 8), p: float = 0.5) -> None:
        super().__init__(1, p)
        self.bits = as_range(bits)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return posterize(images, uniform_between(numbers[:, 0], self.bits[0], self.bits[1] + 1).floor())


class RandomInvert(Transform):
    """The negative of the image, with probability ``p``."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(0, p)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return 1 - images


class RandomAutocontrast(Transform):
    """Each channel stretched to [0, 1], with probability ``p``."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(0, p)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return autocontrast(images)


class RandomEqualize(Transform):
    """The histogram of each channel equalised, at 8 bits, with probability ``p``."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(0, p)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        channels = (255 * images).round_().clamp_(0, 255).byte().flatten(0, 1)[:, None]  # (B C, 1, H, W)
        return tv.equalize(channels).view_as(images) / 255


class Normalize(Transform):
    """(pixel - mean) / std, usually as the last step.

    Args:
        mean: one value per channel.
        std: one value per channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if min(std) <= 0:
            raise ValueError(f"Normalize needs positive values of std, got {tuple(std)}.")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        if images.shape[1] != len(self.mean):
            raise ValueError(
                f"Normalize has {len(self.mean)} means for images of {images.shape[1]} channels; pass one per channel."
            )
        return images.sub_(self.mean.to(images.device)).div_(self.std.to(images.device))
