"""A picture of what an augmentation does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from superself.augment.recipes import recipe
from superself.augment.transform import Views
from superself.basics.pictures import display_range, write_pictures
from superself.data import open_images, to_float


def show_views(dataset: Any, augment: Any, path: str | Path, count: int = 8, views: int = 8, seed: int = 0) -> Path:
    """Writes a PNG with a row for each image: the original first, then its views.

    With several augmentations, each image has a row for each of them, so that they can be compared.

    16-bit images, and float images that exceed [0, 1], are shown from their smallest to their largest value, and their
    views with the same contrast; other images are shown as they are.

    Args:
        dataset: anything that ``open_images`` takes, a list of files for example.
        augment: anything that ``recipe`` takes: a name, a dictionary, a transform, a function of a batch, False; or a list
            of these.
        path: of the file; missing folders are made.
        count: how many images.
        views: of each image, where the augmentation makes one view at a time.
        seed: the same seed gives the same picture.
    Raises:
        ValueError: if the list of augmentations is empty.
    """
    several = isinstance(augment, (list, tuple))
    if several and not augment:
        raise ValueError('augment=[] has no augmentations to show; pass at least one, such as ["simclr", "moco-v1"].')
    images = open_images(dataset).sample(count)
    original = to_float(images)
    shown_range = display_range(original, stretch=images.dtype == torch.uint16)
    sheets = [[original, *_views_of(images, one, views, seed)] for one in (augment if several else [augment])]
    width = max(len(sheet) for sheet in sheets)
    sheets = [sheet + [torch.full_like(original, shown_range[1])] * (width - len(sheet)) for sheet in sheets]
    names = [name_of(one) for one in augment] if several else [name_of(augment)]
    for sheet in sheets[1:]:  # the original stands in the first row of each image
        sheet[0] = torch.full_like(original, shown_range[1])
    columns = [_interleaved(parts) for parts in zip(*sheets, strict=True)]
    return write_pictures(
        columns,
        path,
        shown_range,
        titles=["original", *(f"view {number}" for number in range(1, width))],
        rows=names * len(images) if several else None,
        title=f"Views: {', '.join(names)}" if several else f"Views by {names[0]}",
        subtitle="Each image, and random views of it as a network gets them in training.",
    )


def name_of(augment: Any) -> str:
    """What an augmentation is called in a caption."""
    if isinstance(augment, str):
        return augment
    if isinstance(augment, Mapping):
        return str(augment.get("name", "patchwork"))
    if augment is None or augment is False:
        return "plain"
    name = getattr(augment, "__name__", type(augment).__name__)
    return "a function" if name == "<lambda>" else name


def _views_of(images: Tensor, augment: Any, views: int, seed: int) -> list[Tensor]:
    """The float views of one augmentation, each (n, C, h, w)."""
    transform = recipe(augment, tuple(images.shape[2:]))
    shown = transform(images, generator := torch.Generator().manual_seed(seed))
    if not isinstance(shown, (list, tuple)):
        shown = [shown, *Views(transform, views - 1)(images, generator)] if views > 1 else [shown]
    return [to_float(view) for view in shown]


def _interleaved(parts: tuple[Tensor, ...]) -> Tensor:
    """The first images of all parts, then the second ones: (n, C, h, w) each -> (k * n, C, H, W), smaller ones in the middle."""
    if len(parts) == 1:
        return parts[0]
    height, width = (max(part.shape[axis] for part in parts) for axis in (2, 3))
    padded = []
    for part in parts:
        y, x = height - part.shape[2], width - part.shape[3]
        fill = float(part.max().clamp_min(1))
        padded.append(torch.nn.functional.pad(part, (x // 2, x - x // 2, y // 2, y - y // 2), value=fill))
    return torch.stack(padded, 1).flatten(0, 1)
