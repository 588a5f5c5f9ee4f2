"""Chance levels that depend on the data, measured on the views that a supervisor trains on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from superself.basics.random import preserve_random_state
from superself.data import BatchLoader
from superself.data.sources import evenly_spaced

BATCH = 32  # views at once


@torch.no_grad()
def map_views(supervisor: Any, function: Callable[[Tensor], Any], count: int = 512) -> list[Any]:
    """Applies a function to the first view of each of up to ``count`` images, batch by batch.

    Images are spread evenly over the data set. Their views are made as in training, by the collate function and the
    augmentation, and are the same at every call; random states are restored afterwards.

    Args:
        supervisor: its images, generator and views are used.
        function: of preprocessed views (B, C, h, w).
        count: number of images.
    Returns:
        What the function returned for each batch.
    """
    positions = torch.as_tensor(evenly_spaced(count, len(supervisor.images)))
    batches = BatchLoader(supervisor.images, positions.split(BATCH), collate_fn=supervisor.collate_fn)
    with preserve_random_state(0, supervisor.generator):
        return [function(supervisor.views(data.to(supervisor.device))[0]) for data in batches]


def mean_prediction_loss(supervisor: Any, weigh: Callable[[Tensor], Tensor] | None = None, count: int = 512) -> float:
    """The squared error per value of predicting the mean of each channel: the chance level where pixels are predicted.

    It is the variance of the preprocessed pixels: about 1 if the preprocessing was measured on these images and the views
    are not augmented.

    Args:
        supervisor: its views are used, see ``map_views``.
        weigh: from views (B, C, h, w) to the weights of their errors (B, 1, h, w); None weighs all alike.
        count: number of images.
    """

    def sums(views: Tensor) -> Tensor:
        weights = torch.ones_like(views[:, :1]) if weigh is None else weigh(views)
        pixels, weights = (part.cpu().double() for part in (views, weights.expand_as(views)))
        return torch.stack([(weights * power).sum((0, 2, 3)) for power in (pixels**0, pixels, pixels**2)])  # (3, C)

    total, first, second = torch.stack(map_views(supervisor, sums, count)).sum(0)  # (C,) each
    return (second / total - (first / total).square()).mean().item()
