"""InfoNCE: cross-entropy of finding the positive among negatives."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from superself.basics.validate import require_positive


class InfoNCE(nn.Module):
    """Cross-entropy of finding the positive among itself and K negatives by cosine.

    L = -log exp(q.k / t) / (exp(q.k / t) + sum_j exp(q.n_j / t)), averaged over the batch, in float32; the chance
    level is ln(K + 1). With all rows of a memory bank as negatives it is the non-parametric softmax of instance discrimination.

    Source: van den Oord et al., CPC, arXiv:1807.03748, Eq. 4; with temperature: He et al., MoCo, arXiv:1911.05722, Eq. 1.
    Deviations: none.
    Args:
        temperature: t, divides similarities; smaller is sharper.
    Shape:
        query (B, D), positive (B, D), negatives (K, D) of unit length, exclude (B, K) bool or None -> scalar ().
        Where ``exclude`` is true, a negative is left out for that query, for example because it shows the same image. A query
        without negatives has loss 0.
    Raises:
        ValueError: if ``temperature`` is not positive, or query and positive differ in shape.
    """

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        require_positive("temperature", temperature, "divides similarities")
        self.temperature = temperature

    def forward(self, query: Tensor, positive: Tensor, negatives: Tensor, exclude: Tensor | None = None) -> Tensor:
        """The loss of a batch."""
        if query.shape != positive.shape:
            raise ValueError(
                f"query {tuple(query.shape)} and positive {tuple(positive.shape)} differ in shape; give both heads the same "
                "output width."
            )
        with torch.autocast(query.device.type, enabled=False):
            query, positive = normalize(query.float(), dim=1), normalize(positive.float(), dim=1)
            positives = (query * positive).sum(1, keepdim=True)  # (B, 1)
            rest = query @ negatives.float().T  # (B, K)
            if exclude is not None:
                rest = rest.masked_fill(exclude, -torch.inf)
            logits = torch.cat([positives, rest], 1) / self.temperature  # (B, 1 + K)
            return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
