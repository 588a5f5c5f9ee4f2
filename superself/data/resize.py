"""Images in the form of their data set: channels, type, and the size that they are stored at."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LONGEST = 16  # of an image far longer than its target, times the target's aspect ratio; the rest is cut before resizing


def conform_image(image: Tensor, channels: int, dtype: torch.dtype, size: tuple[int, int]) -> Tensor:
    """An image in the form of its data set: grey repeated, 8 bits widened to 16, resized to cover and cropped to ``size``.

    Shape:
        image (c, h, w) -> (C, H, W).
    Raises:
        ValueError: if channels or type do not fit.
    """
    if image.shape[0] != channels:
        if (image.shape[0], channels) != (1, 3):
            raise ValueError(f"{image.shape[0]} channels where the data set has {channels}")
        image = image.expand(3, -1, -1)
    if image.dtype != dtype:
        if (image.dtype, dtype) != (torch.uint8, torch.uint16):
            raise ValueError(f"{image.dtype} pixels where the data set has {dtype}")
        image = (image.int() * 257).to(dtype)
    return resize_to_cover(image[None], size)[0] if image.shape[1:] != size else image


def resize_to_cover(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images resized to just cover ``size`` (antialiased, keeping the aspect ratio), then cropped at the centre.

    Shape:
        images (N, C, h, w) -> (N, C, H, W).
    """
    images = _without_far_ends(images, size)
    resized, top, left = _covering(images.shape[2:], size)
    as_float = images.dtype == torch.uint16 or resized == (1, 1)  # which torch 2.15 cannot make of 8-bit RGB
    pixels = images.float() if as_float else images
    pixels = F.interpolate(pixels, resized, mode="bilinear", antialias=True)
    pixels = pixels[:, :, top : top + size[0], left : left + size[1]]
    return pixels.round().to(images.dtype) if as_float and not images.is_floating_point() else pixels


def resize_mask_to_cover(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask resized and cropped like its image, with the values of the nearest pixels.

    Shape:
        mask (..., h, w) -> (..., H, W).
    """
    mask = _without_far_ends(mask, size)
    resized, *start = _covering(mask.shape[-2:], size)
    rows, columns = (
        ((torch.arange(first, first + side) + 0.5) * (before / after)).long().clamp(max=before - 1)
        for first, side, before, after in zip(start, size, mask.shape[-2:], resized, strict=True)
    )
    return mask[..., rows[:, None], columns]


def _without_far_ends(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of images (..., h, w) that are far too long: a line of 1 x 60000 pixels would become huge when it is resized."""
    (h, w), (height, width) = images.shape[-2:], size
    rows, columns = (
        min(h, math.ceil(LONGEST * w * height / width)),
        min(w, math.ceil(LONGEST * h * width / height)),
    )
    top, left = (h - rows) // 2, (w - columns) // 2
    return images[..., top : top + rows, left : left + columns]


def _covering(before: Sequence[int], size: tuple[int, int]) -> tuple[tuple[int, int], int, int]:
    """The smallest size of the same aspect ratio that covers ``size``, and top and left of its centre crop."""
    (h, w), (height, width) = before, size
    scale = max(height / h, width / w)
    resized = (max(height, round(h * scale)), max(width, round(w * scale)))
    return resized, (resized[0] - height) // 2, (resized[1] - width) // 2
