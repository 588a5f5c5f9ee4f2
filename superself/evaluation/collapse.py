"""Label-free measures of features: how widely they spread, how many directions they use, how large they are."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def feature_std(features: Tensor) -> float:
    """Standard deviation of the L2-normalised features over the images, averaged over the D dimensions.

    1 / sqrt(D) when the features are uniform on the sphere, 0 when all images have the same features.

    Source: Chen & He, SimSiam, arXiv:2011.10566 (its collapse diagnostic).
    Shape:
        features (N, D) -> number; NaN if a feature is not finite.
    """
    return _directions(features).std(dim=0, correction=0).mean().item()


def mean_cosine(features: Tensor) -> float:
    """Mean cosine between the features of two different images: 1 when all point in the same direction.

    Shape:
        features (N, D) -> number; NaN if a feature is not finite or N < 2.
    """
    directions = _directions(features)
    images = len(directions)
    if images < 2:
        return math.nan
    # The sum over all pairs is the squared length of the sum; the N pairs of an image with itself are taken out.
    pairs = directions.sum(dim=0).square().sum() - directions.square().sum()
    return (pairs / (images * (images - 1))).item()


def feature_rms(features: Tensor) -> float:
    """Root mean square of all feature values: of the order of 1 in healthy networks, huge after divergence.

    Shape:
        features (N, D) -> number; not finite if a feature is not finite.
    """
    return features.detach().cpu().double().square().mean().sqrt().item()


def effective_rank(features: Tensor) -> float:
    """How many directions the features use: the exponential of the entropy of the normalised singular values.

    Between 1 (all features on one line: collapsed) and min(N, D) (all directions used equally).

    Source: Garrido et al., RankMe, arXiv:2210.02885.
    Deviations: 0 log 0 counts as 0, where the paper adds a small number; computed in float64.
    Shape:
        features (N, D) -> number; NaN if a feature is not finite.
    """
    features = features.detach().cpu().double()
    if not features.isfinite().all():
        return math.nan
    singular_values = torch.linalg.svdvals(features)  # (min(N, D),)
    share = singular_values / singular_values.sum().clamp_min(torch.finfo(torch.float64).tiny)  # zeros stay zeros
    return torch.special.entr(share).sum().exp().item()


def _directions(features: Tensor) -> Tensor:
    """The features at length one (N, D); in float64, where the squares of diverged features do not overflow."""
    features = features.detach().cpu().double()
    if not features.isfinite().all():
        features = torch.full_like(features, math.nan)
    return F.normalize(features, dim=1)
