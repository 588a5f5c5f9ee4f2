"""A picture of what an augmentation does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from superself.augment.recipes import recipe
from superself.augment.transform import Views
from superself.basics.pictures import display_range, write_pictures
from superself.data import open_images, to_float


def show_views(dataset: Any, augment: Any, path: str | Path, count: int = 8, views: int = 8, seed: int = 0) -> Path:
    """Writes a PNG with a row for each image: the original first, then its views.

    16-bit images, and float images that exceed [0, 1], are shown from their smallest to their largest value, and their
    views with the same contrast; other images are shown as they are.

    Args:
        dataset: anything that ``open_images`` takes.
        augment: anything that ``recipe`` takes: a name, a dictionary, a transform, a function of a batch, False.
        path: of the file; missing folders are made.
        count: how many images.
        views: pictures per image, the original included, where the augmentation makes one view at a time.
        seed: the same seed gives the same picture.
    """
    images = open_images(dataset).sample(count)
    transform = recipe(augment, tuple(images.shape[2:]))
    shown = transform(images, generator := torch.Generator().manual_seed(seed))
    if not isinstance(shown, (list, tuple)):
        shown = [shown, *Views(transform, views - 1)(images, generator)] if views > 1 else [shown]
    columns = [to_float(view) for view in (images, *shown)]
    return write_pictures(columns, path, display_range(columns[0], stretch=images.dtype == torch.uint16))
