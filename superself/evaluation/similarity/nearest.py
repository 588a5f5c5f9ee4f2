"""neighbours: the most similar images of each image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from superself.evaluation.extraction import Features
from superself.evaluation.similarity.listing import Listing
from superself.evaluation.similarity.rows import open_rows, places_of
from superself.evaluation.similarity.search import search_nearest


@dataclass(frozen=True, eq=False)
class Neighbours(Listing):
    """Result of ``neighbours``: a row for each query that is readable.

    Args:
        queries: (M,) rows of the queries in what they were taken from.
        indices: (M, k) rows of their neighbours in the features, the most similar first.
        cosines: (M, k) similarity of each.
        query_paths: file name of each query, or None.
        paths: file names of the neighbours of each query, M lists of k, or None.
    """

    queries: Tensor
    indices: Tensor
    cosines: Tensor
    query_paths: list[str] | None = None
    paths: list[list[str]] | None = None

    def __len__(self) -> int:
        return len(self.queries)

    def summary(self) -> str:
        """How many queries and neighbours there are."""
        return f"{self.indices.shape[1]} nearest neighbours (cosine) of {len(self)} images"

    def head(self) -> tuple[str, ...]:
        """One line per neighbour."""
        return "query", "rank", "cosine", "index", "query_path", "path"

    def lines(self) -> Iterator[tuple[Any, ...]]:
        """All neighbours of the first query, then of the next."""
        for row, query in enumerate(self.queries.tolist()):
            pairs = zip(self.indices[row].tolist(), self.cosines[row].tolist(), strict=True)
            for rank, (index, cosine) in enumerate(pairs):
                asked = None if self.query_paths is None else self.query_paths[row]
                path = None if self.paths is None else self.paths[row][rank]
                yield query, rank + 1, cosine, index, asked, path


def neighbours(
    features: Features | Tensor, k: int = 10, queries: Any = None, device: torch.device | str | None = None
) -> Neighbours:
    """The ``k`` images with the most similar features, by cosine, of each query.

    The search is exact. Besides the features themselves and the result, it needs about 300 MB, however many images there
    are. An image is not its own neighbour; a copy of it in another file is.

    Args:
        features: (N, D), with paths if the images have them. NaN rows, of unreadable images, are left out, and indices are
            those of the rows as given.
        k: number of neighbours.
        queries: None for every image; row numbers of some of them; or the features of other images, (M, D).
        device: where to compare; None: where the features are.
    Raises:
        ValueError: if there are no more than k images, or the features do not fit.
    """
    rows = open_rows(features, device=device)
    if queries is not None and (isinstance(queries, Features) or getattr(queries, "ndim", 1) == 2):
        asked = open_rows(queries, "queries", rows.directions.device)
        if asked.directions.shape[1] != rows.directions.shape[1]:
            widths = asked.directions.shape[1], rows.directions.shape[1]
            raise ValueError(
                f"queries has {widths[0]} features per image and features {widths[1]}; use one backbone for both."
            )
        own, directions, places, names = None, asked.directions, asked.places, asked.paths
    else:
        own = torch.arange(len(rows)) if queries is None else places_of(queries, rows, "queries")
        directions = rows.directions if queries is None else rows.directions[own.to(rows.directions.device)]
        places, names = rows.places[own], rows.paths
    cosines, found = search_nearest(directions, rows.directions, k, own)
    indices = rows.places[found]  # (M, k)
    asked_paths = None if names is None else [names[place] for place in places.tolist()]
    paths = None if rows.paths is None else [[rows.paths[i] for i in line] for line in indices.tolist()]
    return Neighbours(places, indices, cosines, asked_paths, paths)
