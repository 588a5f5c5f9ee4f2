"""InfoNCE: cross-entropy of finding the positive among negatives."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from superself.basics.validate import require_positive


class InfoNCE(nn.Module):
    """Cross-entropy of finding the positive among itself and K negatives by cosine.

    L = -log exp(q.k / t) / (exp(q.k / t) + w sum_j exp(q.n_j / t)), averaged over the batch, in float32; w = 1, or alpha / K
    with EqCo, which makes loss and gradient depend on alpha instead of K. Chance level: ln(K + 1), or ln(alpha + 1). With
    all rows of a memory bank as negatives it is the non-parametric softmax of instance discrimination.

    Source: van den Oord et al., CPC, arXiv:1807.03748, Eq. 4; with temperature: He et al., MoCo, arXiv:1911.05722, Eq. 1;
        alpha: Zhu et al., EqCo, arXiv:2010.01929, where it is the margin t ln(alpha / K) on the positive.
    Deviations: none.
    Args:
        temperature: t, divides similarities; smaller is sharper.
        alpha: number of negatives that the K at hand stand for; None counts each once.
    Shape:
        query (B, D), positive (B, D), negatives (K, D) of unit length, exclude (B, K) bool or None, own (B, S, D) of unit
        length or None -> scalar ().
        Where ``exclude`` is true, a negative is left out for that query, for example because it shows the same image; what
        is left out does not count in K. A query without negatives has loss 0. ``own`` are negatives of each query alone.
    Raises:
        ValueError: if ``temperature`` or ``alpha`` is not positive, or query and positive differ in shape.
    """

    def __init__(self, temperature: float = 0.07, alpha: float | None = None) -> None:
        super().__init__()
        require_positive("temperature", temperature, "divides similarities")
        if alpha is not None:
            require_positive("alpha", alpha, "is the number of negatives that those at hand stand for")
        self.temperature, self.alpha = temperature, alpha

    def forward(
        self,
        query: Tensor,
        positive: Tensor,
        negatives: Tensor,
        exclude: Tensor | None = None,
        own: Tensor | None = None,
    ) -> Tensor:
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
            if own is not None:
                rest = torch.cat([rest, torch.einsum("bd,bsd->bs", query, own.float())], 1)  # (B, K + S)
            return entropy_of_positive(positives / self.temperature, rest / self.temperature, self.alpha)


def entropy_of_positive(positives: Tensor, negatives: Tensor, alpha: float | None = None) -> Tensor:
    """The cross-entropy of finding the positive, averaged over queries.

    Args:
        positives: logits (B, 1).
        negatives: logits (B, K), -inf where a negative is left out.
        alpha: the number of negatives that each query is to have, whatever it has; None for those it has.
    """
    if alpha is not None:
        counted = negatives.isfinite().sum(1, keepdim=True).clamp(min=1)  # (B, 1)
        negatives = negatives + (alpha / counted).log()
    logits = torch.cat([positives, negatives], 1)  # (B, 1 + K)
    return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
