"""Colour transforms that equal torchvision's, for a whole batch with parameters drawn for each sample.

Hue, saturation, greyscale and Lab need red, green and blue. Images with other channels skip them, with one warning.
"""

from __future__ import annotations

import warnings
from functools import cache
from itertools import permutations

import torch
from torch import Tensor

from superself.augment.transform import Transform, per_sample, scatter_samples
from superself.augment.warp import gather_samples
from superself.basics.colour import greyscale, rgb_to_lab


def is_rgb(images: Tensor, what: str) -> bool:
    """Whether the images have three channels; otherwise warns once that ``what`` is skipped."""
    if images.shape[1] != 3:
        warn_skipped(what, images.shape[1])
    return images.shape[1] == 3


@cache
def warn_skipped(what: str, channels: int) -> None:
    """Warns once that a step which needs RGB does nothing to images with this number of channels."""
    warnings.warn(f"{what} needs RGB and is skipped for images with {channels} channel(s).", stacklevel=4)


def adjust_hue(images: Tensor, turn: Tensor) -> Tensor:
    """RGB images with all hues rotated by a fraction ``turn`` of the colour circle; value and saturation are kept.

    With V the largest and C the largest minus the smallest of a pixel's channels, and h in [0, 6) its new hue, a
    channel is V - C w, where w grows from 0 to 1 between 60 and 120 degrees from the channel's own colour.

    Shape:
        images (B, 3, H, W), turn (B,) in [-0.5, 0.5] -> (B, 3, H, W).
    """
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # 1 where red (green) is not the largest; comparisons and torch.where would take ten times as long on the CPU
    not_red, not_green = torch.sign(value - red), torch.sign(value - green)
    difference = torch.lerp(blue - red, red - green, not_green)
    difference = torch.lerp(green - blue, difference, not_red).div_(chroma.clamp(min=1e-12))
    hue = difference.add_(not_green.add_(1).mul_(not_red), alpha=2)  # 0, 2 or 4, plus -1 to 1
    hue += per_sample(6 * turn, images)[:, 0]
    hue.add_(torch.floor(hue / 6), alpha=-6)
    result = torch.empty_like(images)
    # distance from red is 3 - |h - 3|: w = 2 - |h - 3| between 0 and 1, and its V - C w is written V - C + C (1 - w)
    opposite = (hue - 3).abs_().sub_(1).clamp_(0, 1)
    torch.addcmul(value - chroma, chroma, opposite, out=result[:, 0])
    for channel, pure_hue in ((1, 2), (2, 4)):
        away = (hue - pure_hue).abs_().sub_(1).clamp_(0, 1)
        torch.addcmul(value, chroma, away, value=-1, out=result[:, channel])
    return result


def blend_with_grey(images: Tensor, factor: Tensor, of_mean: Tensor, of_grey: Tensor) -> Tensor:
    """factor x image + of_mean x its mean luma + of_grey x its luma, clipped to [0, 1]; overwrites the images.

    One formula for three transforms of torchvision: brightness has weights (f, 0, 0), contrast (f, 1 - f, 0), saturation
    (f, 0, 1 - f).

    Shape:
        images (B, C, H, W), factor, of_mean, of_grey (B,) -> (B, C, H, W).
    """
    factor, of_mean, of_grey = (per_sample(number, images) for number in (factor, of_mean, of_grey))
    grey = greyscale(images)
    offset = grey.mean((1, 2, 3), keepdim=True).mul_(of_mean)
    return torch.addcmul(grey.mul_(of_grey).add_(offset), images, factor, out=images).clamp_(0, 1)


class ColorJitter(Transform):
    """Brightness, contrast, saturation and hue, each by a random amount, in an order drawn for every sample.

    Args:
        brightness: bounds of the factor; one number b stands for (max(0, 1 - b), 1 + b), and 0 for no change.
        contrast: the same; images are mixed with their mean luma.
        saturation: the same; images are mixed with their greyscale.
        hue: bounds of the rotation as a fraction of the colour circle; one number h stands for (-h, h).
        p: probability for each sample.

    Deviations from torchvision: none for RGB; with another number of channels, luma is the mean of the channels.
    """

    def __init__(
        self,
        brightness: float | tuple[float, float] = 0.0,
        contrast: float | tuple[float, float] = 0.0,
        saturation: float | tuple[float, float] = 0.0,
        hue: float | tuple[float, float] = 0.0,
        p: float = 1.0,
    ) -> None:
        super().__init__(5, p)
        self.factors = [factor_range(bounds) for bounds in (brightness, contrast, saturation)]
        self.hue = (-hue, hue) if isinstance(hue, (int, float)) else tuple(hue)
        self.needs_rgb = self.factors[2] != (1, 1) or self.hue != (0, 0)
        self.blends_any = self.factors != [(1, 1)] * 3
        if not -0.5 <= self.hue[0] <= self.hue[1] <= 0.5:
            raise ValueError(f"hue={hue} must lie between -0.5 and 0.5; pass a fraction of the colour circle.")
        orders = torch.tensor(list(permutations(range(4))))  # (24, 4): 3 is hue
        self.blends, self.hue_step = orders[orders != 3].view(24, 3), (orders == 3).int().argmax(1)

    def run(self, images: Tensor, numbers: Tensor) -> Tensor:
        """All samples are blended, those not selected with factors of 1, which is cheaper than gathering the others."""
        if self.p == 1:
            return self.transform(images, numbers)
        return self.transform(images, numbers[:, 1:], numbers[:, 0] < self.p)

    def transform(self, images: Tensor, numbers: Tensor, chosen: Tensor | None = None) -> Tensor:
        low, high = torch.tensor([*self.factors, self.hue]).T
        amounts, neutral = low + (high - low) * numbers[:, :4], torch.tensor([1.0, 1.0, 1.0, 0.0])
        if chosen is not None:
            amounts = torch.where(chosen[:, None], amounts, neutral)  # (B, 4): factors of the blends, turn of hue
        if self.needs_rgb and not is_rgb(images, "jitter of saturation and hue"):
            amounts[:, 2:] = neutral[2:]
        order = (24 * numbers[:, 4]).long()  # one of the 24 orders
        blends, hue_step = self.blends[order], torch.where(amounts[:, 3] == 0, -1, self.hue_step[order])
        factor = amounts.gather(1, blends)  # (B, 3)
        weights = torch.stack([factor, (1 - factor) * (blends == 1), (1 - factor) * (blends == 2)])
        for step in range(4):
            index = (hue_step == step).nonzero().squeeze(1)
            if len(index):
                scatter_samples(images, index, adjust_hue(gather_samples(images, index), amounts[index, 3]))
            if step < 3 and self.blends_any:
                images = blend_with_grey(images, *weights[:, :, step])
        return images


def factor_range(bounds: float | tuple[float, float]) -> tuple[float, float]:
    """Bounds unchanged, or (max(0, 1 - b), 1 + b) for one number b."""
    return (max(0.0, 1 - bounds), 1 + bounds) if isinstance(bounds, (int, float)) else (bounds[0], bounds[1])


class RandomGrayscale(Transform):
    """All three channels replaced by the luma, with probability ``p``."""

    def __init__(self, p: float = 0.1) -> None:
        super().__init__(0, p)

    def run(self, images: Tensor, numbers: Tensor) -> Tensor:
        return super().run(images, numbers) if is_rgb(images, "greyscale") else images

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return images.copy_(greyscale(images))


class RGBToLab(Transform):
    """Lab, scaled to about [0, 1]: L / 100, (a + 128) / 255, (b + 128) / 255; for RGB images."""

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        if not is_rgb(images, "Lab"):
            return images
        lightness, a, b = rgb_to_lab(images).unbind(1)
        return torch.stack([lightness / 100, (a + 128) / 255, (b + 128) / 255], 1)
