"""Colour spaces: luma and CIE Lab of batches of images."""

from __future__ import annotations

import torch
from torch import Tensor

RED, GREEN, BLUE = 0.2989, 0.587, 0.114  # weights of the luma, as in torchvision
XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))  # of linear RGB
WHITE = (0.95047, 1.0, 1.08883)  # D65 illuminant, 2 degree observer


def greyscale(images: Tensor) -> Tensor:
    """The luma of RGB images; with another number of channels, their mean.

    Shape:
        images (B, C, H, W) -> (B, 1, H, W).
    """
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images.split(1, 1)
    return red.mul(RED).add_(green, alpha=GREEN).add_(blue, alpha=BLUE)


def rgb_to_lab(images: Tensor) -> Tensor:
    """CIE Lab of sRGB images, as in ``skimage.color.rgb2lab``: L in [0, 100], a and b about -100 to 100.

    Always float32: sums are written out, because a matrix product would be rounded under autocast or in TF32.

    Shape:
        images (B, 3, H, W) in [0, 1] -> (B, 3, H, W) float32.
    """
    images = images.float()
    linear = torch.where(images > 0.04045, ((images + 0.055) / 1.055) ** 2.4, images / 12.92)
    red, green, blue = linear.unbind(1)
    rows = [(r / white, g / white, b / white) for (r, g, b), white in zip(XYZ, WHITE, strict=True)]
    xyz = torch.stack([r * red + g * green + b * blue for r, g, b in rows], 1)
    x, y, z = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)
