"""Barlow Twins: the cross-correlation of two views' features becomes the identity."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from superself.basics.distributed import gather
from superself.basics.validate import require_nonnegative, require_positive
from superself.losses.pairs import require_pairs

PAPER_WEIGHT, PAPER_WIDTH, PAPER_BATCH = 0.0051, 8192, 2048  # lambda, and the features and images that it is meant for


class BarlowTwins(nn.Module):
    """Squared distance of the cross-correlation of two views' features to the identity matrix.

    L = sum_i (1 - C_ii)^2 + lambda sum_i sum_{j != i} C_ij^2, times ``scale``, in float32: C is the correlation, over the
    images of the batches of all processes, of feature i of one view with feature j of the other. 0 is perfect. Views that
    share nothing have about D + lambda D (D - 1) / N with N images (see ``chance_level``), so values in the hundreds or
    thousands are normal.

    Source: Zbontar et al., Barlow Twins, arXiv:2103.03230, Algorithm 1, and the authors' code.
    Deviations: none.
    Args:
        weight: lambda, of the off-diagonal elements; None takes 0.0051 (8192 / D) (N / 2048), at most 0.0051 (8192 / D): the
            paper's for its D and N. Correlations of N images are noise of the size 1 / sqrt(N), so the term of D^2 elements
            is about lambda D / N times that of the diagonal: this keeps the paper's 2 %, with which small batches learn too.
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
        return self.scale * invariance, self.scale * self.weight_for(first.shape[1], len(first)) * redundancy

    def weight_for(self, width: int, count: int) -> float:
        """lambda for ``count`` embeddings of this width."""
        if self.weight is not None:
            return self.weight
        return PAPER_WEIGHT * PAPER_WIDTH / width * min(1.0, count / PAPER_BATCH)

    def chance_level(self, width: int, count: int) -> float:
        """The expected loss of ``count`` images, if the views share nothing and features are independent of each other."""
        diagonal = width * (1 + 1 / count)
        return self.scale * (diagonal + self.weight_for(width, count) * width * (width - 1) / count)

    def _standardized(self, features: Tensor) -> Tensor:
        """Features (N, D) of mean 0 and variance 1 over the images."""
        variance, mean = torch.var_mean(features, 0, correction=0)
        return (features - mean) * (variance + self.eps).rsqrt()
