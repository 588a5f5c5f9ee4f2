"""What an algorithm does with a few images, one column for each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from superself.augment.recipes import plain
from superself.basics.pictures import write_pictures
from superself.basics.random import preserve_random_state
from superself.data import Images
from superself.evaluation.extraction import open_at_size
from superself.networks.modes import evaluation_mode


@torch.no_grad()
def show_columns(
    supervisor: Any,
    columns: Callable[[Tensor], Sequence[Tensor]],
    path: str | Path,
    dataset: Any = None,
    count: int = 8,
    *,
    titles: Sequence[str] | None = None,
    title: str = "",
    subtitle: str = "",
) -> Path:
    """Writes a PNG that shows what an algorithm does with a few images, one row per image.

    The supervisor is in evaluation mode while they are drawn; its modes and random states are restored afterwards.

    Args:
        supervisor: its images, generator and networks are used.
        columns: from images (n, C, h, w) as stored, or their centres if views are smaller, to the columns of the picture,
            each (n, C, h, w) in [0, 1].
        path: of the PNG; missing folders are created.
        dataset: anything that ``open_images`` takes; None for the images that the supervisor trains on.
        count: number of rows.
        titles: of the columns; None for a picture without captions.
        title: of the whole picture.
        subtitle: one or two sentences below the title.
    Raises:
        ValueError: if there are no images.
    """
    images = supervisor.images if dataset is None else dataset
    if not isinstance(images, Images):
        images = open_at_size(images, supervisor.images.shape[1:], supervisor.images.reading)
    if len(images) == 0:
        raise ValueError("there are no images to show; pass a data set as dataset=.")
    batch = images.sample(count).to(supervisor.device)
    if batch.shape[2:] != supervisor.view_shape[1:]:
        batch = plain(supervisor.view_shape[1:])(batch)
    with preserve_random_state(0, supervisor.generator), evaluation_mode(supervisor):
        shown = columns(batch)
    return write_pictures(shown, path, titles=titles, title=title, subtitle=subtitle)
