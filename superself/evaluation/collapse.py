"""Label-free measures of features: how widely they spread, how many directions they use, how large they are."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 8192  # features at once in float64


def feature_std(features: Tensor) -> float:
    """Standard deviation of the L2-normalised features over the images, averaged over the D dimensions.

    1 / sqrt(D) when the features are uniform on the sphere, 0 when all images have the same features.

    Source: Chen & He, SimSiam, arXiv:2011.10566 (its collapse diagnostic).
    Shape:
        features (N, D) -> number; NaN if a feature is not finite.
    """
    if not features.isfinite().all():
        return math.nan
    mean = sum(part.sum(0) for part in unit_rows(features)) / len(features)  # (D,)
    variance = sum((part - mean).square().sum(0) for part in unit_rows(features)) / len(features)
    return variance.sqrt().mean().item()


def mean_cosine(features: Tensor) -> float:
    """Mean cosine between the features of two different images: 1 when all point in the same direction.

    Shape:
        features (N, D) -> number; NaN if a feature is not finite or N < 2.
    """
    images = len(features)
    if images < 2 or not features.isfinite().all():
        return math.nan
    sums = [(part.sum(0), part.square().sum()) for part in unit_rows(features)]
    total, own = (sum(part) for part in zip(*sums, strict=True))
    # The sum over all pairs is the squared length of the sum; the N pairs of an image with itself are taken out.
    return ((total.square().sum() - own) / (images * (images - 1))).item()


def feature_rms(features: Tensor) -> float:
    """Root mean square of all feature values: of the order of 1 in healthy networks, huge after divergence.

    Shape:
        features (N, D) -> number; not finite if a feature is not finite.
    """
    squares = sum(part.double().square().sum() for part in features.detach().cpu().split(ROWS))
    return (squares / features.numel()).sqrt().item()


def effective_rank(features: Tensor) -> float:
    """How many directions the features use: the exponential of the entropy of the normalised singular values.

    Between 1 (all features on one line: collapsed) and min(N, D) (all directions used equally).

    Source: Garrido et al., RankMe, arXiv:2210.02885.
    Deviations: 0 log 0 counts as 0, where the paper adds a small number; computed in float64, from the Gram matrix, so that
        memory grows with the square of min(N, D) only.
    Shape:
        features (N, D) -> number; NaN if a feature is not finite.
    """
    if not features.isfinite().all():
        return math.nan
    images, width = features.shape
    features = features.detach().cpu() if images > width else features.detach().cpu().T
    # Singular values are the roots of the eigenvalues of the smaller of F^T F and F F^T.
    gram = sum(part.double().T @ part.double() for part in features.split(ROWS))
    values = torch.linalg.eigvalsh(gram)
    noise = len(values) * torch.finfo(values.dtype).eps * values[-1]  # of the eigenvalues; its root would count
    return entropy_rank(torch.where(values > noise, values, 0.0).sqrt())


def entropy_rank(values: Tensor) -> float:
    """The exponential of the entropy of values >= 0 divided by their sum; 1 if all are 0.

    Source: Roy & Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007.
    Shape:
        (n,) -> number.
    """
    share = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)  # zeros stay zeros
    return torch.special.entr(share).sum().exp().item()


def unit_rows(features: Tensor, rows: int = ROWS) -> Iterator[Tensor]:
    """The features at length one, ``rows`` at a time; in float64, where the squares of diverged features do not overflow."""
    return (F.normalize(part.double(), dim=1) for part in features.detach().cpu().split(rows))
