"""JPEG: what lossy compression does to images, without writing files."""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from superself.augment.transform import Transform, as_range, uniform_between
from superself.basics.validate import require_count

LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *[(99, 99, 99, 99, 99, 99, 99, 99)] * 4,
)  # fmt: skip


class JPEG(Transform):
    """Images as they come back from a JPEG file of random quality.

    Colours are stored at half the resolution, as Pillow does it. All but some rounding is as in libjpeg: values differ from
    Pillow's by less than half a level of 255 on average. The channels of other images than RGB are compressed one by one.

    Args:
        quality: bounds, both included, or one number for all samples; from 1 to 100, where libjpeg's default is 75.
        p: probability for each sample.
    Raises:
        ValueError: if a quality is out of range.

    Source: ITU-T T.81, Annex A.3 and the tables of Annex K; conversion of colours: JFIF 1.02.
    """

    def __init__(self, quality: int | tuple[int, int] = (10, 75), p: float = 1.0) -> None:
        super().__init__(1, p)
        self.quality = as_range(quality)
        for bound in self.quality:
            require_count("quality", bound, "is that of a JPEG file", maximum=100)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        low, high = self.quality
        return compress(images, uniform_between(numbers[:, 0], low, high + 1).floor())


def compress(images: Tensor, quality: Tensor) -> Tensor:
    """Images that were compressed with a quality each.

    Shape:
        images (B, C, H, W) in [0, 1], quality (B,) from 1 to 100 on the CPU -> (B, C, H, W).
    """
    scale = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    luma, chroma = (
        ((torch.tensor(table, dtype=torch.float32) * scale.view(-1, 1, 1) + 50) / 100).floor().clamp(1, 255)
        for table in (LUMA, CHROMA)
    )  # (B, 8, 8)
    luma, chroma = (table.to(images.device, non_blocking=True) for table in (luma, chroma))
    pixels = (255 * images).round().clamp_(0, 255)
    if images.shape[1] != 3:
        return compressed(pixels, luma) / 255
    red, green, blue = pixels.unbind(1)
    y = (0.299 * red + 0.587 * green + 0.114 * blue).round()
    cb = (128 - 0.168735892 * red - 0.331264108 * green + 0.5 * blue).round()
    cr = (128 + 0.5 * red - 0.418687589 * green - 0.081312411 * blue).round()
    y = compressed(y[:, None], luma)[:, 0]
    small = F.avg_pool2d(to_multiple(torch.stack([cb, cr], 1), 2), 2)  # (B, 2, h, w)
    small += (
        torch.arange(small.shape[3], device=small.device) % 2 + 1
    ) / 4  # libjpeg rounds halves up in odd columns only
    small = small.floor()
    cb, cr = F.interpolate(compressed(small, chroma), scale_factor=2, mode="bilinear").round().sub(128).unbind(1)
    cb, cr = (plane[:, : images.shape[2], : images.shape[3]] for plane in (cb, cr))
    colours = torch.stack([y + 1.402 * cr, y - 0.344136286 * cb - 0.714136286 * cr, y + 1.772 * cb], 1)
    return colours.round_().clamp_(0, 255) / 255


def compressed(planes: Tensor, table: Tensor) -> Tensor:
    """Planes (B, M, H, W) of 0 to 255 whose blocks of 8 x 8 lose what division by the table (B, 8, 8) and rounding take away."""
    height, width = planes.shape[2:]
    blocks = to_multiple(planes - 128, 8)
    rows, columns = blocks.shape[2] // 8, blocks.shape[3] // 8
    blocks = blocks.unflatten(3, (columns, 8)).unflatten(2, (rows, 8)).transpose(3, 4)  # (B, M, rows, columns, 8, 8)
    dct = cosines().to(planes.device, non_blocking=True)
    table = table[:, None, None, None]
    waves = dct @ blocks @ dct.T / table
    waves = torch.trunc(waves + 0.5001 * waves.sign())  # halves, which are frequent, away from zero, as libjpeg does
    found = dct.T @ (waves * table) @ dct
    return found.transpose(3, 4).flatten(4).flatten(2, 3)[:, :, :height, :width].add(128).round_().clamp_(0, 255)


def to_multiple(planes: Tensor, side: int) -> Tensor:
    """Planes (B, M, H, W) whose last row and column are repeated until the sides are multiples of ``side``."""
    right, bottom = -planes.shape[3] % side, -planes.shape[2] % side
    return F.pad(planes, (0, right, 0, bottom), mode="replicate") if right or bottom else planes


@cache
def cosines() -> Tensor:
    """The matrix (8, 8) of the orthonormal discrete cosine transform: row k is the wave k."""
    place, wave = torch.arange(8, dtype=torch.float64), torch.arange(8, dtype=torch.float64)[:, None]
    matrix = torch.cos(math.pi / 8 * (place + 0.5) * wave) / 2
    matrix[0] /= math.sqrt(2)
    return matrix.float()
