"""CO2: two views of an image should be equally similar to other images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize

from superself.basics.validate import require_positive


class CO2(nn.Module):
    """Consistency of two views: their similarities to the same other images should have the same distribution.

    L = (KL(P || Q) + KL(Q || P)) / 2, averaged over the batch, in float32: Q is the softmax of q.n_j / t over the K negatives,
    P that of k.n_j / t. 0 if both agree; there is no upper bound. It is added to a contrastive loss with a weight, and
    gradients flow into both views, except where a view was detached, as MoCo's keys are.

    Source: Wei et al., CO2, arXiv:2010.02217.
    Deviations: none. The positive takes no part in either distribution.
    Args:
        temperature: t, divides similarities.
    Shape:
        query (B, D), key (B, D), negatives (K, D) of unit length, exclude (B, K) bool or None -> scalar ().
        Where ``exclude`` is true, a negative is left out of both distributions of that query; without any, the loss is 0.
    Raises:
        ValueError: if ``temperature`` is not positive, or query and key differ in shape.
    """

    def __init__(self, temperature: float = 0.04) -> None:
        super().__init__()
        require_positive("temperature", temperature, "divides similarities")
        self.temperature = temperature

    def forward(self, query: Tensor, key: Tensor, negatives: Tensor, exclude: Tensor | None = None) -> Tensor:
        """The loss of a batch."""
        if query.shape != key.shape:
            raise ValueError(
                f"query {tuple(query.shape)} and key {tuple(key.shape)} differ in shape; give both heads the same output width."
            )
        with torch.autocast(query.device.type, enabled=False):
            log_q, log_p = (self._log_softmax(z, negatives.float(), exclude) for z in (query, key))  # (B, K) each
            divergence = (log_p.exp() - log_q.exp()) * (log_p - log_q)  # summed over K: KL(P || Q) + KL(Q || P)
            if exclude is not None:
                divergence = divergence.masked_fill(exclude, 0.0)
            return divergence.sum(1).mean() / 2

    def _log_softmax(self, z: Tensor, negatives: Tensor, exclude: Tensor | None) -> Tensor:
        logits = normalize(z.float(), dim=1) @ negatives.T / self.temperature  # (B, K)
        if exclude is not None:  # not -inf: the difference of two would not be a number
            logits = logits.masked_fill(exclude, torch.finfo(logits.dtype).min / 2)
        return log_softmax(logits, dim=1)
