"""Clustering of features: PCA whitening, k-means, and how far two clusterings agree."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

FULL_SIZE = 2**17  # points up to which k-means looks at all of them in every iteration
PER_CLUSTER = 256  # of more points it fits the centroids to a random sample, of at least so many per cluster
REPAIRS = 10  # further iterations while a cluster is empty
PERTURBATION = 1e-3  # of the centroid of a cluster that is split, as a fraction of the mean length of the points
SMALLEST_VARIANCE = 1e-6  # of a principal component, as a fraction of the largest; below it there is only rounding
CHUNK = 2**25  # similarities that are computed at once


@torch.no_grad()
def whiten(features: Tensor, dimensions: int) -> Tensor:
    """The leading principal components of features, each divided by its standard deviation; rows are scaled to unit length.

    Components whose variance is only rounding are left out, so fewer may be returned; of features that are all equal, a
    single column of zeros remains.

    Shape:
        features (N, D) -> (N, d) float32, d at most ``dimensions``.
    """
    centred = features.float() - features.float().mean(0)
    covariance = (centred.T @ centred / len(centred)).cpu().double()  # (D, D)
    variances, directions = torch.linalg.eigh(covariance)  # in ascending order
    found = int((variances > SMALLEST_VARIANCE * variances[-1].clamp(min=0)).sum())
    kept = min(dimensions, found)
    if not kept:
        return torch.zeros_like(centred[:, :1])
    projection = directions[:, -kept:] / variances[-kept:].sqrt()  # (D, d)
    return normalize(centred @ projection.to(centred), dim=1)


@torch.no_grad()
def kmeans(
    points: Tensor,
    clusters: int,
    generator: torch.Generator,
    iterations: int = 20,
    spherical: bool = False,
    spread: bool = False,
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from random points; the cluster of each point (N,), and the centroids (K, D).

    When a cluster is empty, a cluster drawn in proportion to its size is split in two by a small perturbation of its centroid;
    while one is empty, up to 10 iterations follow. Clusters may stay empty where many points
    are equal. Of more than 131,072
    points, or 256 per cluster if that is more, a random sample of so many determines the centroids.

    Args:
        points: (N, D).
        clusters: K.
        generator: random numbers on the CPU; the result depends only on it and on the points.
        iterations: how often centroids are computed.
        spherical: scale centroids to unit length, for points of unit length.
        spread: start from ``spread_points``, which finds small clusters far from the others.
    Raises:
        ValueError: if there are fewer points than clusters.
    """
    if not 1 <= clusters <= len(points):
        raise ValueError(f"clusters={clusters} is not possible for {len(points)} points; pass from 1 to {len(points)}.")
    points = points.float()
    order = torch.randperm(len(points), generator=generator).to(points.device)
    limit = max(FULL_SIZE, PER_CLUSTER * clusters)
    sample = points if len(points) <= limit else points[order[:limit]]
    centroids = sample[spread_points(sample, clusters, generator)] if spread else points[order[:clusters]].clone()
    noise = PERTURBATION * sample.norm(dim=1).mean()
    for iteration in range(iterations + REPAIRS):
        nearest = nearest_centroids(sample, centroids)
        sizes = nearest.bincount(minlength=clusters)
        if iteration >= iterations and sizes.all():
            break
        sums = torch.zeros_like(centroids).index_add_(0, nearest, sample)
        centroids = sums / sizes.clamp(min=1)[:, None]
        _split_large_clusters(centroids, sizes.cpu(), noise, generator)
        if spherical:
            centroids = normalize(centroids, dim=1)
    return nearest_centroids(points, centroids), centroids


@torch.no_grad()
def spread_points(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows of points that are far from each other: greedy k-means++. Time grows with N x count, memory with N.

    Each is the best of a few candidates, drawn in proportion to their squared distances from the nearest one so far: that
    after which the sum of these distances is smallest. Where all points have been chosen or equal one that has, rows repeat.

    Source: Arthur & Vassilvitskii, k-means++: The Advantages of Careful Seeding, 2007.
    Shape:
        points (N, D) -> (count,) int64.
    """
    candidates = 2 + int(math.log(count))
    squares = points.square().sum(1)
    rows = [int(torch.randint(len(points), (1,), generator=generator))]
    distance = (squares + squares[rows[0]] - 2 * points @ points[rows[0]]).clamp_min(0)  # (N,)
    while len(rows) < count:
        share = distance.double().cumsum(0)  # (N,); torch.multinomial takes no more than 2^24 points
        places = torch.rand(candidates, dtype=torch.float64, generator=generator).to(points.device) * share[-1]
        drawn = torch.searchsorted(share, places).clamp_max(len(points) - 1)
        towards = squares[:, None] + squares[drawn] - 2 * points @ points[drawn].T  # (N, candidates)
        towards = torch.minimum(towards.clamp_min(0), distance[:, None])
        best = int(towards.sum(0).argmin())
        distance = towards[:, best]
        rows.append(int(drawn[best]))
    return torch.tensor(rows, device=points.device)


def nearest_centroids(points: Tensor, centroids: Tensor) -> Tensor:
    """The centroid with the smallest Euclidean distance. Shape: points (N, D), centroids (K, D) -> (N,) int64."""
    half_squares = centroids.square().sum(1) / 2  # |x - c|^2 = |x|^2 - 2 (x.c - |c|^2 / 2)
    rows = max(1, CHUNK // len(centroids))
    return torch.cat([(part @ centroids.T - half_squares).argmax(1) for part in points.split(rows)])


def _split_large_clusters(centroids: Tensor, sizes: Tensor, noise: Tensor, generator: torch.Generator) -> None:
    """Gives every empty cluster the centroid of a large one; the two are moved apart by a random vector, in place."""
    sizes = sizes.clone()
    for empty in (sizes == 0).nonzero().flatten().tolist():
        large = int(torch.multinomial((sizes - 1).clamp(min=0).double(), 1, generator=generator))
        direction = torch.randn(centroids.shape[1], generator=generator).to(centroids)
        direction = noise * normalize(direction, dim=0)
        centroids[empty] = centroids[large] + direction
        centroids[large] -= direction
        sizes[empty], sizes[large] = sizes[large] // 2, sizes[large] - sizes[large] // 2


def normalized_mutual_information(first: Tensor, second: Tensor) -> float:
    """I(A; B) / sqrt(H(A) H(B)) of two clusterings A and B of the same points: 1 if they agree, 0 if they are independent.

    Two clusterings with a single cluster agree.

    Shape:
        first (N,), second (N,) of integers from 0 -> a number.
    """
    width = int(second.max()) + 1
    entropies = [_entropy(part) for part in (first, second, first * width + second)]
    if entropies[0] == 0 or entropies[1] == 0:
        return float(entropies[0] == entropies[1])
    information = entropies[0] + entropies[1] - entropies[2]
    return max(0.0, information / (entropies[0] * entropies[1]) ** 0.5)


def _entropy(labels: Tensor) -> float:
    """Of the distribution of labels (N,), in nats."""
    shares = labels.cpu().unique(return_counts=True)[1].double() / len(labels)
    return -(shares * shares.log()).sum().item()
