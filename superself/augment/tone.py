"""Changes of tone that need no colour: solarize, posterize, invert, autocontrast, equalize, sharpness."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from superself.augment.transform import Transform, to_device, uniform


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Pixels from the threshold (B,) on inverted."""
    return torch.where(images >= to_device(threshold, images), 1 - images, images)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """The highest ``bits`` (B,) of the eight bits of each pixel."""
    step = to_device(2 ** (8 - bits), images)
    return torch.floor((255 * images).round_() / step) * step / 255


def autocontrast(images: Tensor) -> Tensor:
    """Every channel stretched to [0, 1]; a constant one stays as it is."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = low == high
    return (images - torch.where(flat, 0.0, low)) / torch.where(flat, 1.0, high - low)


def adjust_sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Images mixed with their blurred selves: 0 is blurred, 1 the image, 2 sharper; the border stays.

    The blur is Pillow's: 3 x 3 pixels, the middle one with weight 5/13, the others with 1/13.
    """
    inner = images[:, :, 1:-1, 1:-1]
    blurred = (9 * F.avg_pool2d(images, 3, 1) + 4 * inner) / 13
    result = images.clone()
    result[:, :, 1:-1, 1:-1] = torch.lerp(blurred, inner, to_device(factor, images)).clamp_(0, 1)
    return result


class RandomSolarize(Transform):
    """Pixels from ``threshold`` on inverted; a number, or bounds from which each sample draws one."""

    def __init__(self, threshold: float | tuple[float, float] = 0.5, p: float = 0.5) -> None:
        super().__init__(1, p)
        self.threshold = bounds(threshold)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return solarize(images, uniform(numbers[:, 0], *self.threshold))


class RandomPosterize(Transform):
    """Only the highest ``bits`` of the eight kept; a number, or bounds (both included)."""

    def __init__(self, bits: int | tuple[int, int] = (4, 8), p: float = 0.5) -> None:
        super().__init__(1, p)
        self.bits = bounds(bits)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return posterize(images, uniform(numbers[:, 0], self.bits[0], self.bits[1] + 1).floor())


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


class RandomAdjustSharpness(Transform):
    """Blurred (0) to sharper than it is (2); a number, or bounds."""

    def __init__(self, factor: float | tuple[float, float] = 2.0, p: float = 0.5) -> None:
        super().__init__(1, p)
        self.factor = bounds(factor)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return adjust_sharpness(images, uniform(numbers[:, 0], *self.factor))


def bounds(value: float | tuple[float, float]) -> tuple[float, float]:
    """Bounds as they are, or (v, v) of one number v."""
    return (value, value) if isinstance(value, (int, float)) else (value[0], value[1])
