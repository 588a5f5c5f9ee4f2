"""PNG files with a grid of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

GAP = 2  # pixels between pictures
LARGEST = 128  # pixels; larger pictures are shrunk to this size


def write_pictures(columns: Sequence[Tensor], path: str | Path, shown_range: tuple[float, float] | None = None) -> Path:
    """Writes a PNG with a column for each batch of images, and a row for each place in the batches.

    Args:
        columns: float batches (n, C, h, w) of any sizes; the first three channels are shown, of two channels the first.
        path: of the file; missing folders are made.
        shown_range: values shown as black and as white; None takes ``display_range`` of the first column.
    """
    low, high = shown_range or display_range(columns[0])
    columns = [(images.float().cpu() - low) / (high - low) for images in columns]
    side = min(LARGEST, max(columns[0].shape[2:]))
    rows = [torch.cat(row, 2) for row in zip(*(fit_into_squares(images, side) for images in columns), strict=True)]
    array = (torch.cat(rows, 1).permute(1, 2, 0) * 255).round().byte()  # rows: (3, side + GAP, width)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(array.numpy())).save(path)
    return path


def display_range(images: Tensor, stretch: bool = False) -> tuple[float, float]:
    """The values to show as black and as white: 0 and 1, or the range of the images if it exceeds [0, 1].

    Args:
        images: float images of any shape.
        stretch: take the range of the images in any case, for types such as uint16 of which few values may be used.
    """
    low, high = (value.item() for value in images.aminmax())
    if not stretch and low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high if high > low else low + 1.0


def fit_into_squares(images: Tensor, side: int) -> Tensor:
    """Images (B, C, h, w) as RGB of at most ``side`` pixels, in the middle of white squares of ``side + GAP`` pixels."""
    images = images.clamp(0, 1)
    channels = images.shape[1]
    images = images if channels == 3 else images[:, :3] if channels > 3 else images[:, :1].expand(-1, 3, -1, -1)
    scale = side / max(images.shape[2:])
    if scale < 1:
        images = F.interpolate(images, scale_factor=scale, mode="bilinear", antialias=True)
    rest_y, rest_x = (side + GAP - length for length in images.shape[2:])
    return F.pad(images, (rest_x // 2, rest_x - rest_x // 2, rest_y // 2, rest_y - rest_y // 2), value=1.0)
