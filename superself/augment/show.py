"""A picture of what an augmentation does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from superself.augment.recipes import recipe
from superself.augment.transform import Views
from superself.basics.pictures import write_pictures
from superself.data import open_images, to_float


def show_views(
    dataset: Any, augment: str | Callable, path: str | Path, count: int = 8, views: int = 8, seed: int = 0
) -> Path:
    """Writes a PNG: a row for each image, the original first, then its views.

    Args:
        dataset: anything that ``open_images`` takes.
        augment: the name of a recipe, a transform, or any function of a batch; one view is repeated.
        path: of the file; folders are made.
        count: how many images.
        views: how many views of each, where the augmentation makes one.
        seed: the same picture for the same seed.
    """
    images = open_images(dataset).sample(count)
    transform = recipe(augment, tuple(images.shape[2:]))
    shown = transform(images, generator := torch.Generator().manual_seed(seed))
    if not isinstance(shown, (list, tuple)):
        shown = [shown, *Views(transform, views - 1)(images, generator)] if views > 1 else [shown]
    return write_pictures([to_float(view) for view in (images, *shown)], path)
