"""outliers: images that are unlike all others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from superself.evaluation.extraction import Features
from superself.evaluation.similarity.listing import Listing
from superself.evaluation.similarity.rows import open_rows
from superself.evaluation.similarity.search import search_nearest


@dataclass(frozen=True, eq=False)
class Outliers(Listing):
    """Result of ``outliers``: all readable images, the most unusual first.

    Args:
        indices: (n,) rows of the images.
        scores: (n,) distance of each to its k-th neighbour, from 0 to 2.
        k: the number of neighbours.
        paths: n file names, or None.
    """

    indices: Tensor
    scores: Tensor
    k: int
    paths: list[str] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def summary(self) -> str:
        """What the scores mean, and that of a usual image."""
        usual = self.scores.median().item()
        return f"{len(self)} images by distance to neighbour {self.k}, the most unusual first (median {usual:.3f})"

    def head(self) -> tuple[str, ...]:
        """One line per image."""
        return "rank", "score", "index", "path"

    def lines(self) -> Iterator[tuple[Any, ...]]:
        """The most unusual image first."""
        for place, (index, score) in enumerate(zip(self.indices.tolist(), self.scores.tolist(), strict=True)):
            yield place + 1, score, index, None if self.paths is None else self.paths[place]


def outliers(features: Features | Tensor, k: int = 20, device: torch.device | str | None = None) -> Outliers:
    """All images, those first whose features have no similar ones: score = sqrt(2 - 2 cosine) to the k-th neighbour.

    That is the distance between the features at length one. A group of up to k images that are unlike the rest is found as
    well; with the mean distance to the k neighbours, its members would vouch for each other. What is unusual is for the
    backbone to judge: plain noise and images of a single colour are alike to some networks, so look at both ends of the list.

    Source: Sun et al., Out-of-Distribution Detection with Deep Nearest Neighbors, arXiv:2204.06507.
    Deviations: scores images within one data set; the paper scores new images against known ones, with a larger k.
    Args:
        features: (N, D), with paths if the images have them. NaN rows, of unreadable images, are left out, and indices are
            those of the rows as given.
        k: which neighbour; more than the number of odd images that resemble each other.
        device: where to compare; None: where the features are.
    Raises:
        ValueError: if there are no more than k images, or the features do not fit.
    """
    rows = open_rows(features, device=device)
    cosines, _ = search_nearest(rows.directions, rows.directions, k, torch.arange(len(rows)))
    scores, order = (2 - 2 * cosines[:, -1]).clamp_min(0).sqrt().sort(descending=True, stable=True)
    indices = rows.places[order]
    return Outliers(indices, scores, k, None if rows.paths is None else [rows.paths[i] for i in indices.tolist()])
