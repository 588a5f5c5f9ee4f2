"""Figures: nearest neighbours by features, and what an algorithm does with a few images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from superself.augment.recipes import plain
from superself.basics.pictures import write_pictures
from superself.basics.random import preserve_random_state
from superself.data import Images
from superself.evaluation.extraction import features, open_at_size
from superself.networks.modes import evaluation_mode

CELL = 96  # pixels of the longer side of an image in the figure
GAP = 4


def show_neighbours(backbone: nn.Module, dataset: Any, path: str | Path, queries: int = 8, neighbours: int = 8) -> Path:
    """Writes a PNG: in each row a query image, a gap, and the images whose features are most similar by cosine.

    The queries are drawn from the data set, the same ones at every call. Images with more than three channels show the
    first three, images with two the first. Images that are not uint8 are stretched from their minimum to their maximum.
    Unreadable images are left out.

    Args:
        dataset: anything that ``features`` takes.
        path: of the PNG; missing folders are created.
        queries: number of rows.
        neighbours: images per query, the most similar first, without the query itself.
    Returns:
        ``path``.
    Raises:
        ValueError: if the data set has fewer readable images than ``queries``, or no more than ``neighbours``.
    """
    preprocessing = getattr(backbone, "preprocessing", None)
    images = open_at_size(dataset, preprocessing and preprocessing.shape[1:], preprocessing and preprocessing.reading)
    found = features(backbone, images, on_broken="nan").features
    places = (~found.isnan().all(dim=1)).nonzero().flatten()  # (N,) of the readable images
    count = len(places)
    if not (1 <= queries <= count and 1 <= neighbours < count):
        raise ValueError(
            f"queries={queries} and neighbours={neighbours} do not fit the {count} available images; "
            f"pass queries from 1 to {count} and neighbours from 1 to {count - 1}."
        )
    directions = F.normalize(found[places], dim=1)  # (N, D)
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:queries]
    similarity = directions[rows] @ directions.T  # (queries, N)
    similarity[torch.arange(queries), rows] = -torch.inf
    nearest = similarity.topk(neighbours).indices  # (queries, neighbours)
    table = places[torch.cat([rows[:, None], nearest], dim=1)]  # (queries, 1 + neighbours)

    height, width = (max(1, round(CELL * side / max(images.shape[1:]))) for side in images.shape[1:])
    sheet = Image.new("RGB", ((1 + neighbours) * (width + GAP) + 4 * GAP, queries * (height + GAP) + GAP), "white")
    for row, indices in enumerate(table):
        for column, image in enumerate(images.batch(indices).images.cpu()):
            left = GAP + column * (width + GAP) + (3 * GAP if column else 0)
            picture = _picture(image).resize((width, height), Image.Resampling.BOX)
            sheet.paste(picture, (left, GAP + row * (height + GAP)))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
    return path


@torch.no_grad()
def show_columns(
    supervisor: Any,
    columns: Callable[[Tensor], Sequence[Tensor]],
    path: str | Path,
    dataset: Any = None,
    count: int = 8,
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
    return write_pictures(shown, path)


def _picture(image: Tensor) -> Image.Image:
    """The first three channels of an image (C, H, W), or the first as grey, as an 8-bit picture."""
    image = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    if image.dtype != torch.uint8:
        image = image.float()
        low, high = image.min(), image.max()
        image = ((image - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny) * 255).byte()
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
