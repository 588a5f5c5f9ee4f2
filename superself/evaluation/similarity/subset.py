"""coverage: a few images that stand for all, to be labelled first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from superself.basics.clustering import kmeans
from superself.basics.validate import require_count
from superself.evaluation.extraction import Features
from superself.evaluation.similarity.listing import Listing
from superself.evaluation.similarity.rows import open_rows, places_of

CHUNK = 2**14  # rows whose distances to the centres are computed at a time


@dataclass(frozen=True, eq=False)
class Coverage(Listing):
    """Result of ``coverage``: the images to label, that of the largest cluster first.

    Args:
        indices: (n,) rows of the images.
        sizes: (n,) number of images in the cluster that each stands for; 0 for those that fill gaps.
        radii: (n,) largest distance of any image to the nearest chosen one, after each has been added; from 0 to 2.
        paths: n file names, or None.
    """

    indices: Tensor
    sizes: Tensor
    radii: Tensor
    paths: list[str] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def summary(self) -> str:
        """How far the chosen images are from the others."""
        return f"{len(self)} images to label first; no image is farther than {self.radii[-1]:.3f} from one of them"

    def head(self) -> tuple[str, ...]:
        """One line per image."""
        return "rank", "stands_for", "radius", "index", "path"

    def lines(self) -> Iterator[tuple[Any, ...]]:
        """In the order in which they are worth labelling."""
        columns = zip(self.indices.tolist(), self.sizes.tolist(), self.radii.tolist(), strict=True)
        for place, (index, size, radius) in enumerate(columns):
            yield place + 1, size, radius, index, None if self.paths is None else self.paths[place]


@torch.no_grad()
def coverage(
    features: Features | Tensor,
    n: int,
    start: Any = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Coverage:
    """``n`` images that stand for the whole data set: the one nearest to the centre of each cluster of k-means.

    With images that are labelled already, there are as many more clusters, and the largest of those without a labelled image
    are represented. k-means works on the directions of the features minus their mean. The same call gives the same images.

    Farthest-first selection (k-centre greedy, Sener & Savarese, arXiv:1708.00489) is not used: it starts with the outliers,
    and labels chosen so were worth less than randomly chosen ones from 50 on (docs/your_images.md).

    Source: the clustering of Hacohen et al., TypiClust, arXiv:2202.02794.
    Deviations: of each cluster the image nearest to its centre, where TypiClust takes the one with the densest surroundings.
    Args:
        features: (N, D), with paths if the images have them. NaN rows, of unreadable images, are left out, and indices are
            those of the rows as given. Time grows with n N D, memory with N D.
        n: how many images.
        start: rows of images that are labelled already; they are not chosen again.
        seed: of the images that k-means starts from, which are far from each other.
        device: where to compute; None: where the features are.
    Raises:
        ValueError: if there are fewer than n images that are not labelled, or the features do not fit.
    """
    rows = open_rows(features, device=device)
    known = torch.empty(0, dtype=torch.long) if start is None else places_of(start, rows, "start").unique()
    left = len(rows) - len(known)
    require_count("n", n, f"is a number of images to choose, of which there are {left}", maximum=left)
    centred = F.normalize(rows.directions - rows.directions.mean(dim=0), dim=1)
    chosen, sizes = _centre_images(centred, n, known, seed)
    chosen, radii = _with_radii(rows.directions, chosen, known, n)
    indices = rows.places[chosen]
    sizes = torch.cat([sizes, sizes.new_zeros(n - len(sizes))])
    return Coverage(indices, sizes, radii, None if rows.paths is None else [rows.paths[i] for i in indices.tolist()])


def _centre_images(points: Tensor, n: int, known: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """At most n rows, one for each of the largest clusters without a known row, and the sizes of the clusters."""
    clusters = min(n + len(known), len(points))
    labels, centres = kmeans(points, clusters, torch.Generator().manual_seed(seed), spherical=True, spread=True)
    labels = labels.cpu()
    sizes = labels.bincount(minlength=clusters)
    distance = torch.cat(  # (n,) of each point to the centre of its cluster
        [
            (part - centres[label.to(centres.device)].to(part)).square().sum(dim=1).cpu()
            for part, label in zip(points.split(CHUNK), labels.split(CHUNK), strict=True)
        ]
    )
    order = distance.sort(stable=True).indices
    order = order[labels[order].sort(stable=True).indices]  # by cluster, the nearest to its centre first
    first = order[(sizes.cumsum(0) - sizes).clamp_max(len(order) - 1)]  # (clusters,); of an empty one any row
    free = sizes > 0
    free[labels[known]] = False
    ranked = sizes.sort(descending=True, stable=True).indices
    ranked = ranked[free[ranked]][:n]
    return first[ranked], sizes[ranked]


def _with_radii(directions: Tensor, chosen: Tensor, known: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The chosen rows, filled up to n with the row that is farthest from all before, and the radius after each of the n."""
    distance = directions.new_full((len(directions),), torch.inf)  # squared, to the nearest row so far
    for row in known.tolist():
        distance = torch.minimum(distance, 2 - 2 * (directions @ directions[row]))
    taken = torch.zeros(len(directions), dtype=torch.bool, device=directions.device)
    taken[known.to(directions.device)] = True
    taken[chosen.to(directions.device)] = True
    rows, radii = chosen.tolist(), []
    for step in range(n):
        if step == len(rows):
            rows.append(int(distance.masked_fill(taken, -torch.inf).argmax()))
            taken[rows[-1]] = True
        distance = torch.minimum(distance, 2 - 2 * (directions @ directions[rows[step]]))
        radii.append(distance.max())
    return torch.tensor(rows), torch.stack(radii).clamp_min(0).sqrt().cpu()
