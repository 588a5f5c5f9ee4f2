"""Two numbers that say, without labels, whether features have collapsed."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def feature_std(features: Tensor) -> float:
    """The standard deviation of the L2-normalised features over the images, averaged over the D dimensions.

    1 / sqrt(D) when the features spread evenly over the sphere, 0 when all images have the same one.

    Source: Chen & He, SimSiam, arXiv:2011.10566 (its collapse diagnostic).
    Shape:
        features (N, D) -> number; NaN if a feature is not finite.
    """
    return F.normalize(features.detach().float(), dim=1).std(dim=0, correction=0).mean().item()


def effective_rank(features: Tensor) -> float:
    """How many directions the features use: the exponential of the entropy of the normalised singular values.

    Between 1 (all features on one line, collapsed) and min(N, D) (all directions used equally).

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
