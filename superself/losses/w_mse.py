"""W-MSE: distance of two views after whitening random parts of the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from superself.basics.distributed import from_rank_0, gather
from superself.basics.validate import require_count, require_fraction
from superself.losses.pairs import require_pairs


class WMSE(nn.Module):
    """Mean squared distance of unit vectors that were whitened: mean 0, variance 1 and no correlation within parts of a batch.

    L = mean of ||w / |w| - w' / |w'| ||^2 = 2 - 2 cos(w, w'), in float32: w = L^-1 (z - m) with the mean m of the embeddings of
    one view in a part of the batch, and the Cholesky factor L of their covariance. From 0 when the views align to 2, the
    chance level. Parts are random, and taken from the batches of all processes; the gradient flows through the whitening,
    which spreads embeddings over all dimensions, so that they cannot collapse.

    Source: Ermolov et al., Whitening for Self-Supervised Representation Learning, arXiv:2007.06346, and the authors' code.
    Deviations: images that are left over when the batch is not a multiple of ``size`` are left out, other ones in each
        iteration; ``eps`` is not 0, so that features of a constant or repeated value can be whitened.
    Args:
        size: images of a part; None takes twice the width of the embeddings, as the authors do. With fewer images than that,
            covariances are estimated badly.
        iterations: how often the batch is divided into parts; the loss is the mean.
        eps: shrinkage, the share of the identity matrix in covariances.
        generator: random numbers on the CPU for the parts; None takes torch's.
    Shape:
        first and second view (B, D) -> scalar ().
    Raises:
        ValueError: if an argument is out of range, the shapes differ, or there are fewer images than ``size``.
    """

    def __init__(
        self,
        size: int | None = None,
        iterations: int = 1,
        eps: float = 1e-4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if size is not None:
            require_count("size", size, "is the number of images that are whitened together", minimum=2)
        require_count("iterations", iterations, "is how often the batch is divided into parts")
        require_fraction("eps", eps, "is the share of the identity matrix in covariances", upper_open=True)
        self.size, self.iterations, self.eps, self.generator = size, iterations, eps, generator

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss of a batch."""
        require_pairs(first, second)
        with torch.autocast(first.device.type, enabled=False):
            views = [gather(view.float()) for view in (first, second)]  # each (N, D)
            parts = self._parts(len(views[0]), first.shape[1]).to(first.device, non_blocking=True)
            parts = from_rank_0(parts)  # one draw for the global batch
            whitened = [normalize(whiten(view[parts], self.eps), dim=-1) for view in views]  # each (P, size, D)
            return 2 - 2 * (whitened[0] * whitened[1]).sum(-1).mean()

    def _parts(self, count: int, width: int) -> Tensor:
        """The positions (P, size) of the images of each part."""
        size = 2 * width if self.size is None else self.size
        if count < size:
            raise ValueError(
                f"the batch of {count} images is smaller than the {size} that are whitened together; pass batches of at least "
                f"{size} images, or make embeddings narrower, for example of {max(1, count // 2)} values, with a size of twice "
                "their width."
            )
        orders = [torch.randperm(count, generator=self.generator) for _ in range(self.iterations)]
        return torch.stack(orders)[:, : count // size * size].reshape(-1, size)


def whiten(embeddings: Tensor, eps: float = 1e-4) -> Tensor:
    """Embeddings of mean 0 and covariance 1 over the images, by the Cholesky factor of their covariance.

    Where a covariance has no such factor, the result is NaN, without waiting for an accelerator to find out.

    Args:
        embeddings: in float32.
        eps: shrinkage, the share of the identity matrix in the covariance.

    Shape:
        (..., N, D) -> (..., N, D).
    """
    count, width = embeddings.shape[-2:]
    centred = (embeddings - embeddings.mean(-2, keepdim=True)).mT  # (..., D, N)
    covariance = centred @ centred.mT / (count - 1)
    identity = torch.eye(width, dtype=covariance.dtype, device=covariance.device)
    factor, failed = torch.linalg.cholesky_ex((1 - eps) * covariance + eps * identity)
    whitened = torch.linalg.solve_triangular(factor, centred, upper=False).mT
    return whitened.masked_fill(failed[..., None, None] > 0, torch.nan)
