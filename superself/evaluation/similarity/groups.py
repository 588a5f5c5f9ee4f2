"""duplicates: groups of images that are nearly the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from superself.basics.validate import require_fraction
from superself.evaluation.extraction import Features
from superself.evaluation.similarity.listing import Listing
from superself.evaluation.similarity.rows import Rows, open_rows
from superself.evaluation.similarity.search import search_nearest

BLOCK = 2048  # rows and columns that are compared at a time
MOST_LINKS = 2**20  # pairs that are kept until groups are joined; more where there are more images
ROUNDING = 2e-6  # of a cosine in float32
SAMPLE, RANK, FRACTION = 1000, 10, 0.4  # of the automatic threshold, see duplicate_threshold


@dataclass(frozen=True, eq=False)
class Duplicates(Listing):
    """Result of ``duplicates``: groups of near-duplicates, that with the most similar pair first.

    Args:
        groups: rows of the images of each group, in the order of the data set.
        cosines: of each image to the most similar other one of its group.
        threshold: cosine from which on two images belong to one group.
        images: number of readable images.
        paths: file names of the images of each group, or None.
    """

    groups: list[Tensor]
    cosines: list[Tensor]
    threshold: float
    images: int
    paths: list[list[str]] | None = None

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def redundant(self) -> Tensor:
        """Rows of all images but the first of each group: without them, no two near-duplicates are linked."""
        return torch.cat([group[1:] for group in self.groups] or [torch.empty(0, dtype=torch.long)]).sort().values

    def summary(self) -> str:
        """How many images are in groups, and whether these say more about the features than about the images."""
        members = sum(map(len, self.groups))
        groups = (
            f"{len(self)} group{'' if len(self) == 1 else 's'} of near-duplicates (cosine from {self.threshold:.4f})"
        )
        text = f"{members} of {self.images} images in {groups}"
        largest = max(map(len, self.groups), default=0)
        if largest > self.images / 2:
            text += (
                f"\n{largest} images are in one group: either most images show the same, or the threshold is too low for "
                "these features, or they have collapsed; compare a few pictures, and pass a larger threshold."
            )
        return text

    def head(self) -> tuple[str, ...]:
        """One line per image."""
        return "group", "cosine", "index", "path"

    def lines(self) -> Iterator[tuple[Any, ...]]:
        """The images of the first group, then of the next."""
        for number, (group, cosines) in enumerate(zip(self.groups, self.cosines, strict=True)):
            for place, (index, cosine) in enumerate(zip(group.tolist(), cosines.tolist(), strict=True)):
                yield number + 1, cosine, index, None if self.paths is None else self.paths[number][place]


def duplicates(
    features: Features | Tensor, threshold: float | None = None, device: torch.device | str | None = None
) -> Duplicates:
    """Groups of images whose features are nearly the same: two with a cosine of at least ``threshold`` are in one group.

    A group is a connected component, so its ends may be less similar than the threshold. All pairs are compared, in blocks:
    besides the features themselves, about 100 MB and some 100 bytes per image are needed, even where all are similar.

    How large a cosine of two different images is depends on the network: features after a ReLU have a large common mean, so
    that two random images have 0.7 in a trained network and 0.97 in an untrained one. No fixed threshold fits both;
    ``duplicate_threshold`` explains the automatic one.

    Args:
        features: (N, D), with paths if the images have them. NaN rows, of unreadable images, are left out, and indices are
            those of the rows as given.
        threshold: smallest cosine of near-duplicates, up to 1 for equal features; None: ``duplicate_threshold``.
        device: where to compare; None: where the features are.
    Raises:
        ValueError: if an automatic threshold cannot be chosen, since more than half of the images have many copies.
    """
    rows = open_rows(features, device=device)
    if threshold is None:
        threshold = _threshold_of(rows)
    require_fraction("threshold", threshold, "is the smallest cosine of near-duplicates", lower_open=True)
    labels, best = _components(rows.directions, min(threshold, 1 - ROUNDING))
    members = np.flatnonzero(best >= min(threshold, 1 - ROUNDING))
    order = members[np.lexsort((members, labels[members]))]
    starts = np.flatnonzero(np.r_[True, np.diff(labels[order]) != 0]) if len(order) else []
    found = [torch.from_numpy(part) for part in np.split(order, starts[1:])] if len(order) else []
    cosines = [torch.from_numpy(best[part.numpy()]).clamp(max=1) for part in found]
    ranked = sorted(range(len(found)), key=lambda i: (-cosines[i].max().item(), found[i][0].item()))
    groups = [rows.places[found[i]] for i in ranked]
    paths = None if rows.paths is None else [[rows.paths[i] for i in group.tolist()] for group in groups]
    return Duplicates(groups, [cosines[i] for i in ranked], float(threshold), len(rows), paths)


def duplicate_threshold(features: Features | Tensor, device: torch.device | str | None = None) -> float:
    """The cosine from which on two images count as near-duplicates of each other, measured on the features.

    Two near-duplicates are 0.4 times as far apart as an image and its tenth neighbour usually are: the median of that
    distance over up to 1,000 images spread over the data set, where the distance is sqrt(2 - 2 cosine). Duplicates do not
    move it unless more than half of the images have ten or more.

    Source: cleanlab's near-duplicate check also relates the threshold to the median distance of neighbours.
    Raises:
        ValueError: if there are fewer than three images, or that median distance is zero.
    """
    return _threshold_of(open_rows(features, device=device))


def _threshold_of(rows: Rows) -> float:
    if len(rows) < 3:
        raise ValueError(f"a threshold cannot be measured on {len(rows)} images; pass threshold=, for example 0.99.")
    sample = torch.arange(len(rows))[:: -(-len(rows) // SAMPLE)]
    chosen = rows.directions[sample.to(rows.directions.device)]
    cosines, _ = search_nearest(chosen, rows.directions, min(RANK, len(rows) - 1), sample)
    usual = (2 - 2 * cosines[:, -1]).clamp_min(0).sqrt().median().item()
    if usual**2 / 2 <= 10 * ROUNDING:
        raise ValueError(
            f"at least half of {len(sample)} images that were looked at have {min(RANK, len(rows) - 1)} others with the same "
            "features: they have collapsed, or most images are copies; pass threshold=, for example 0.9999."
        )
    return 1 - (FRACTION * usual) ** 2 / 2


@torch.no_grad()
def _components(directions: Tensor, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """The group of each row (n,), and the largest cosine to another row (n,) where that reaches the threshold, else -2."""
    count, device = len(directions), directions.device
    labels = torch.arange(count, device=device)
    best = torch.full((count,), -2.0, device=device)
    links: list[Tensor] = []
    for top in range(0, count, BLOCK):
        rows = directions[top : top + BLOCK]
        for left in range(top, count, BLOCK):  # each pair once
            similarity = rows @ directions[left : left + BLOCK].T
            if left == top:
                similarity.fill_diagonal_(-2)
            across = similarity.amax(dim=1)  # (m,)
            if across.max() < threshold:
                continue
            upper, lower = slice(top, top + BLOCK), slice(left, left + BLOCK)
            best[upper] = torch.maximum(best[upper], across)
            best[lower] = torch.maximum(best[lower], similarity.amax(dim=0))
            new = (similarity >= threshold) & (labels[upper, None] != labels[None, lower])
            pairs = new.nonzero() + torch.tensor([top, left], device=device)  # (links, 2)
            if len(pairs):
                links.append(labels[pairs])
            if sum(map(len, links)) > max(MOST_LINKS, count):
                labels, links = _join(labels, links), []
    best[best < threshold] = -2
    return _join(labels, links).cpu().numpy(), best.cpu().numpy()


def _join(labels: Tensor, links: list[Tensor]) -> Tensor:
    """The labels after those that ``links`` (pairs of labels) connect have become one."""
    if not links:
        return labels
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first, second = torch.cat(links).cpu().numpy().T
    ones = np.ones(len(first), dtype=np.int8)
    _, joined = connected_components(coo_array((ones, (first, second)), shape=(len(labels),) * 2), directed=False)
    return torch.from_numpy(joined.astype(np.int64)).to(labels.device)[labels]
