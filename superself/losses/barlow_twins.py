"""Barlow Twins: the cross-correlation of two views' features becomes the identity."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from superself.basics.distributed import gather
from superself.basics.validate import require_nonnegative, require_positive
from superself.losses.pairs import require_pairs

PAPER_WEIGHT, PAPER_WIDTH = 0.0051, 8192  # lambda, and the number of features that it is meant for


class BarlowTwins(nn.Module):
    """Squared distance of the cross-correlation of two views' features to the identity matrix.

    L = sum_i (1 - C_ii)^2 + lambda sum_i sum_{j != i} C_ij^2, times ``scale``, in float32: C is the correlation, over the
    images of the batches of all processes, of feature i of one view with feature j of the other. 0 is perfect. Views that
    share nothing have about D + lambda D (D - 1) / N with N images (see ``chance_level``), so values in the hundreds or
    thousands are normal.

    Source: Zbontar et al., Barlow Twins, arXiv:2103.03230, Algorithm 1, and the authors' code.
    Deviations: none.
    Args:
        weight: lambda, of the off-diagonal elements; None takes 0.0051 sqrt(8192 / D), which is the paper's for D = 8192 and
            0.0204 for D = 512. In proportion to 1 / D, the noise of small batches outweighs the diagonal in narrow embeddings.
        scale: multiplies the loss; matters to optimizers that do not normalise gradients, such as SGD.
        eps: added to variances, so that a constant feature has the correlation 0.
    Shape:
        first and second view (B, D) -> scalar ().
    Raises:
        ValueError: if an argument is out of range, the shapes differ, or there is a single image.
    """

    def __init__(self, weight: float | None = None, scale: float = 1.0, eps: float = 1e-5) -> None:
        super().__init__()
        if weight is not None:
            require_nonnegative("weight", weight, "is lambda, of the off-diagonal elements")
        require_positive("scale", scale, "multiplies the loss")
        require_positive("eps", eps, "is added to variances")
        self.weight, self.scale, self.eps = weight, scale, eps

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss of a batch."""
        invariance, redundancy = self.terms(first, second)
        return invariance + redundancy

    def terms(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """The two weighted terms, whose sum is the loss: of the diagonal, and of all other elements."""
        require_pairs(first, second)
        with torch.autocast(first.device.type, enabled=False):
            first, second = (self._standardized(gather(view.float())) for view in (first, second))  # (N, D)
            correlation = first.T @ second / len(first)  # C (D, D)
            diagonal = correlation.diagonal()
            invariance = (1 - diagonal).square().sum()
            redundancy = (correlation - torch.diag(diagonal)).square().sum()
        return self.scale * invariance, self.scale * self.weight_for(first.shape[1]) * redundancy

    def weight_for(self, width: int) -> float:
        """lambda for embeddings of this width."""
        return PAPER_WEIGHT * math.sqrt(PAPER_WIDTH / width) if self.weight is None else self.weight

    def chance_level(self, width: int, count: int) -> float:
        """The expected loss of ``count`` images, if the views share nothing and features are independent of each other."""
        diagonal = width * (1 + 1 / count)
        return self.scale * (diagonal + self.weight_for(width) * width * (width - 1) / count)

    def _standardized(self, features: Tensor) -> Tensor:
        """Features (N, D) of mean 0 and variance 1 over the images."""
        variance, mean = torch.var_mean(features, 0, correction=0)
        return (features - mean) * (variance + self.eps).rsqrt()
