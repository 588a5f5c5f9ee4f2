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
LARGEST = 128  # pixels; larger pictures are shown at this size


def write_pictures(columns: Sequence[Tensor], path: str | Path) -> Path:
    """Writes a PNG with a column for each batch of images, and in each row the images of one place of the batches.

    Args:
        columns: batches (n, C, h, w) in [0, 1], of any sizes; the first three channels are shown, of two the first.
        path: of the file; folders are made.
    """
    side = min(LARGEST, max(columns[0].shape[2:]))
    rows = [torch.cat(row, 2) for row in zip(*(picture(images, side) for images in columns), strict=True)]
    array = (torch.cat(rows, 1).permute(1, 2, 0) * 255).round().byte().cpu().numpy()  # rows: (3, side + GAP, width)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(array)).save(path)
    return path


def picture(images: Tensor, side: int) -> Tensor:
    """Images as RGB of at most ``side`` pixels, in the middle of white squares -> (B, 3, side + GAP, ...)."""
    images = images.cpu().clamp(0, 1)
    channels = images.shape[1]
    images = images if channels == 3 else images[:, :3] if channels > 3 else images[:, :1].expand(-1, 3, -1, -1)
    scale = side / max(images.shape[2:])
    if scale < 1:
        images = F.interpolate(images, scale_factor=scale, mode="bilinear", antialias=True)
    rest_y, rest_x = (side + GAP - length for length in images.shape[2:])
    return F.pad(images, (rest_x // 2, rest_x - rest_x // 2, rest_y // 2, rest_y - rest_y // 2), value=1.0)
