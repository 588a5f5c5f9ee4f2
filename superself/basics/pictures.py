"""PNG files with a grid of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from superself.basics.drawing import CAPTION, MARGIN, Sheet, heading_height, line_height, text_width, wrap

GAP = 2  # pixels between pictures
LARGEST = 128  # pixels; larger pictures are shrunk to this size
SPACE = 8  # pixels between pictures with captions
LABEL = 150  # pixels that the labels of rows take at most


def write_pictures(
    columns: Sequence[Tensor],
    path: str | Path,
    shown_range: tuple[float, float] | None = None,
    *,
    titles: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    title: str = "",
    subtitle: str = "",
) -> Path:
    """Writes a PNG with a column for each batch of images, and a row for each place in the batches.

    With any caption, small images are enlarged by a whole number, up to ``LARGEST`` pixels.

    Args:
        columns: float batches (n, C, h, w) of any sizes; the first three channels are shown, of two channels the first.
        path: of the file; missing folders are made.
        shown_range: values shown as black and as white; None takes ``display_range`` of the first column.
        titles: what is shown, one for each column.
        rows: one for each row.
        title: of the whole picture.
        subtitle: one or two sentences below the title.
    Raises:
        ValueError: if there is not one title per column, or not one label per row.
    """
    low, high = shown_range or display_range(columns[0])
    columns = [(images.float().cpu() - low) / (high - low) for images in columns]
    side = min(LARGEST, max(columns[0].shape[2:]))
    if not (titles or rows or title):
        cells = [torch.cat(row, 2) for row in zip(*(fit_into_squares(images, side) for images in columns), strict=True)]
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _as_picture(torch.cat(cells, 1)).save(path)  # (3, rows * (side + GAP), columns * (side + GAP))
        return path
    for name, texts, count in (("titles", titles, len(columns)), ("rows", rows, len(columns[0]))):
        if texts is not None and len(texts) != count:
            raise ValueError(f"{name} has {len(texts)} texts, the picture has {count} {name}; pass one text for each.")
    cells = [[_enlarged(image, side) for image in fit_into_squares(images, side, gap=0)] for images in columns]
    table = list(zip(*cells, strict=True))
    return draw_table(table, titles, rows, title, subtitle).save(path)


def draw_table(
    table: Sequence[Sequence[Image.Image]],
    titles: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    title: str = "",
    subtitle: str = "",
) -> Sheet:
    """A sheet with pictures of one size in rows and columns, with captions as of ``write_pictures``."""
    width, height = (max(sizes) for sizes in zip(*(picture.size for row in table for picture in row), strict=True))
    across, down = len(table[0]), len(table)
    label = 0 if rows is None else min(LABEL, max(text_width(row) for row in rows)) + 12
    # A single narrow column still has room for its title.
    step = max(width + SPACE, max(_longest_word(text) for text in titles) + SPACE if titles else 0)
    total = max(2 * MARGIN + label + across * step - SPACE, _title_room(title))
    heads = [wrap(text, step - SPACE) for text in titles] if titles else []
    head = max((len(lines) for lines in heads), default=0) * line_height(CAPTION)
    top = heading_height(title, subtitle, total) if title or subtitle else MARGIN
    first = top + head + (6 if head else 0)
    sheet = Sheet(total, first + down * (height + SPACE) - SPACE + MARGIN)
    sheet.heading(title, subtitle)
    for column, lines in enumerate(heads):
        middle = MARGIN + label + column * step + (step - SPACE) / 2
        sheet.lines(middle, top + head - len(lines) * line_height(CAPTION), lines, anchor="ma")
    for number, pictures in enumerate(table):
        y = first + number * (height + SPACE)
        if rows is not None:
            lines = wrap(rows[number], label - 12)
            sheet.lines(MARGIN, y + (height - len(lines) * line_height(CAPTION)) / 2, lines)
        for column, picture in enumerate(pictures):
            sheet.picture(MARGIN + label + column * step + (step - SPACE - width) // 2, y, picture)
    return sheet


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


def fit_into_squares(images: Tensor, side: int, gap: int = GAP) -> Tensor:
    """Images (B, C, h, w) as RGB of at most ``side`` pixels, in the middle of white squares of ``side + gap`` pixels."""
    images = images.clamp(0, 1)
    channels = images.shape[1]
    images = images if channels == 3 else images[:, :3] if channels > 3 else images[:, :1].expand(-1, 3, -1, -1)
    scale = side / max(images.shape[2:])
    if scale < 1:
        images = F.interpolate(images, scale_factor=scale, mode="bilinear", antialias=True)
    rest_y, rest_x = (side + gap - length for length in images.shape[2:])
    return F.pad(images, (rest_x // 2, rest_x - rest_x // 2, rest_y // 2, rest_y - rest_y // 2), value=1.0)


def to_picture(image: Tensor, width: int, height: int) -> Image.Image:
    """An image (C, H, W) of any type as an 8-bit picture of the given size.

    The first three channels are shown, of one or two channels the first as grey; what is not uint8 is stretched from the
    smallest value to the largest.
    """
    image = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    if image.dtype != torch.uint8:
        image = image.float()
        low, high = image.min(), image.max()
        image = ((image - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny) * 255).byte()
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    enlarged = width > picture.width or height > picture.height
    return picture.resize((width, height), Image.Resampling.BICUBIC if enlarged else Image.Resampling.BOX)


def _as_picture(image: Tensor) -> Image.Image:
    """A float image (3, H, W) in [0, 1]."""
    return Image.fromarray(np.ascontiguousarray((image.permute(1, 2, 0) * 255).round().byte().numpy()))


def _enlarged(image: Tensor, side: int) -> Image.Image:
    """A float image (3, side, side) in [0, 1] as a picture, each pixel as large as fits into ``LARGEST``."""
    picture, times = _as_picture(image), max(1, LARGEST // side)
    return picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST)


def _longest_word(text: str) -> int:
    return max((min(text_width(word), LARGEST) for word in text.split()), default=0)


def _title_room(title: str) -> int:
    """The width of a sheet on which a title takes at most two lines."""
    return 2 * MARGIN + min(480, text_width(title, 22, bold=True)) if title else 0
