"""Pictures of what a backbone has learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from superself.basics.pictures import write_pictures
from superself.basics.random import preserve_random_state
from superself.data import Images, open_images
from superself.evaluation.extraction import features, open_at_size
from superself.networks.modes import evaluation_mode

CELL = 96  # pixels of the longer side of an image in the figure
GAP = 4


def show_neighbours(backbone: nn.Module, dataset: Any, path: str | Path, queries: int = 8, neighbours: int = 8) -> Path:
    """Writes a PNG: in each row a query image, a gap, and the images whose features are most similar by cosine.

    The queries are drawn from the data set, always the same ones. Of images with more than three channels the
    first three are shown, of two the first. Images that are not uint8 are stretched from their minimum to maximum.

    Args:
        dataset: anything that ``features`` takes.
        path: where the figure goes; missing folders are made.
        queries: rows.
        neighbours: images beside each query, the most similar first; a query is not its own neighbour.
    Returns:
        ``path``.
    Raises:
        ValueError: if the data set has fewer images than ``queries`` or no more than ``neighbours``.
    """
    images = open_at_size(dataset, getattr(backbone, "preprocessing", None))
    if not (1 <= queries <= len(images) and 1 <= neighbours < len(images)):
        raise ValueError(
            f"queries={queries} and neighbours={neighbours} cannot be shown of {len(images)} images; "
            f"pass queries from 1 to {len(images)} and neighbours from 1 to {len(images) - 1}."
        )
    directions = F.normalize(features(backbone, images).features, dim=1)  # (N, D)
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:queries]
    similarity = directions[rows] @ directions.T  # (queries, N)
    similarity[torch.arange(queries), rows] = -torch.inf
    nearest = similarity.topk(neighbours).indices  # (queries, neighbours)
    table = torch.cat([rows[:, None], nearest], dim=1)  # (queries, 1 + neighbours)

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
    """Writes a PNG of what an algorithm does with a few images: a row for each image.

    The supervisor is in evaluation mode meanwhile; its modes and random states are afterwards what they were before.

    Args:
        supervisor: whose images, generator and networks are used.
        columns: from images as stored (n, C, H, W) to the columns of the picture, each (n, C, h, w) in [0, 1].
        path: where the picture goes; missing folders are made.
        dataset: anything that ``open_images`` takes; None takes the images that the supervisor trains on.
        count: rows.
    Raises:
        ValueError: if there are no images.
    """
    images = supervisor.images if dataset is None else dataset
    if not isinstance(images, Images):
        images = open_images(images, image_size=supervisor.images.shape[1:])
    if len(images) == 0:
        raise ValueError("there are no images to show; pass dataset= to show some.")
    batch = images.sample(count).to(supervisor.device)
    state = supervisor.generator.get_state()
    try:
        with preserve_random_state(seed=0), evaluation_mode(supervisor):
            supervisor.generator.manual_seed(0)
            shown = columns(batch)
    finally:
        supervisor.generator.set_state(state)
    return write_pictures(shown, path)


def _picture(image: Tensor) -> Image.Image:
    """The first three channels (C, H, W), or the first as grey, in the range a picture has."""
    image = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    if image.dtype != torch.uint8:
        image = image.float()
        low, high = image.min(), image.max()
        image = ((image - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny) * 255).byte()
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
