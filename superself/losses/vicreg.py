"""VICReg: views agree, features vary, and features do not covary."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, relu

from superself.basics.distributed import gather
from superself.basics.validate import require_nonnegative, require_positive
from superself.losses.pairs import require_pairs


class VICReg(nn.Module):
    """Mean squared distance of two views, a hinge on the standard deviation of each feature, and squared covariances.

    L = invariance * s + variance * v + covariance * c, in float32, over the N images of the batches of all processes:
    s is the mean of (z - z')^2 over images and features, v the mean of max(0, 1 - sqrt(Var + eps)) over features and both
    views, c the sum of squared covariances of different features over D, for both views together. Embeddings must not be
    scaled to unit length. Constant ones have ``variance`` * (1 - sqrt(eps)), 24.75 by default.

    Source: Bardes et al., VICReg, arXiv:2105.04906, and the authors' code.
    Deviations: those of the authors' code from their paper, because the default weights are meant for the code: v is the mean
        over both views and not their sum, and s is divided by D. Settings of implementations that add up v need twice the
        ``variance`` here.
    Args:
        invariance: weight of s, lambda in the paper.
        variance: weight of v, mu in the paper.
        covariance: weight of c, nu in the paper.
        eps: added to variances.
    Shape:
        first and second view (B, D) -> scalar ().
    Raises:
        ValueError: if an argument is out of range, the shapes differ, or there is a single image.
    """

    def __init__(
        self, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0, eps: float = 1e-4
    ) -> None:
        super().__init__()
        for name, value in (("invariance", invariance), ("variance", variance), ("covariance", covariance)):
            require_nonnegative(name, value, "is the weight of a term of the loss")
        require_positive("eps", eps, "is added to variances")
        self.invariance, self.variance, self.covariance, self.eps = invariance, variance, covariance, eps

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss of a batch."""
        return sum(self.terms(first, second))

    def terms(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The weighted terms of invariance, variance and covariance, whose sum is the loss."""
        require_pairs(first, second)
        with torch.autocast(first.device.type, enabled=False):
            views = [gather(view.float()) for view in (first, second)]  # each (N, D)
            distance = mse_loss(*views)  # s
            hinge = sum(relu(1 - (view.var(0) + self.eps).sqrt()).mean() for view in views) / 2  # v
            squares = sum(_squared_covariances(view) for view in views)  # c
        return self.invariance * distance, self.variance * hinge, self.covariance * squares


def _squared_covariances(features: Tensor) -> Tensor:
    """The sum of the squared covariances of different features (N, D), divided by D."""
    centred = features - features.mean(0)
    covariance = centred.T @ centred / (len(features) - 1)  # (D, D)
    different = covariance - torch.diag(covariance.diagonal())
    return different.square().sum() / features.shape[1]
