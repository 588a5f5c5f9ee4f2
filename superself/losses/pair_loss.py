"""PairLoss: three ways to compare a query with its key and with negatives."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from superself.basics.validate import require_bool, require_choice, require_positive
from superself.losses.info_nce import entropy_of_positive

OBJECTIVES = ("ce", "ip", "bce")


class PairLoss(nn.Module):
    """Compares queries with their keys, and with negatives if there are any, by cosine or inner product.

    With s = q.k for the key, s_j = q.n_j for K negatives, t the temperature; averaged over the batch, in float32:

    - "ce": -log exp(s / t) / (exp(s / t) + c sum_j exp(s_j / t)), where c = 1, or alpha / K; chance level ln(K + 1), or
      ln(alpha + 1). With c = 1 it is InfoNCE.
    - "ip": (1 - s) + sum_j (1 + s_j): without negatives, half the squared distance of unit vectors; chance level K + 1.
    - "bce": softplus(-s / t) + sum_j softplus(s_j / t), each candidate being classified as the key or not; chance level
      (K + 1) ln 2.

    Source: "ce": He et al., MoCo, arXiv:1911.05722, Eq. 1, and for alpha Zhu et al., EqCo, arXiv:2010.01929; "ip" and "bce" as in
        github.com/untitled-ai/self_supervised, and "ip" without negatives as in Grill et al., BYOL, arXiv:2006.07733, Eq. 2.
    Deviations: K counts the negatives that are not excluded, where that code divides alpha by the batch size.
    Args:
        objective: "ce", "ip" or "bce".
        temperature: t; not used by "ip".
        alpha: for "ce", the number of negatives that the loss is equivalent to, whatever K is; None counts each once.
        normalized: scale queries and keys to unit length, so that s is a cosine.
    Shape:
        query (B, D), key (B, D), negatives (K, D) of unit length or None, exclude (B, K) bool or None -> scalar ().
        Where ``exclude`` is true, a negative is left out for that query. "ce" without negatives is 0.
    Raises:
        ValueError: if an argument is out of range, or the shapes do not match.
    """

    def __init__(
        self, objective: str = "ce", temperature: float = 0.2, alpha: float | None = None, normalized: bool = True
    ) -> None:
        super().__init__()
        require_choice("objective", objective, OBJECTIVES)
        require_positive("temperature", temperature, "divides similarities")
        require_bool("normalized", normalized, "scales queries and keys to unit length")
        if alpha is not None:
            require_positive("alpha", alpha, "is the number of negatives that the loss is equivalent to")
            if objective != "ce":
                raise ValueError(f'alpha={alpha} weights the negatives of objective="ce", not those of {objective!r}.')
        self.objective, self.temperature, self.alpha, self.normalized = objective, temperature, alpha, normalized

    def forward(
        self, query: Tensor, key: Tensor, negatives: Tensor | None = None, exclude: Tensor | None = None
    ) -> Tensor:
        """The loss of a batch."""
        if query.shape != key.shape:
            raise ValueError(
                f"query {tuple(query.shape)} and key {tuple(key.shape)} differ in shape; give both heads the same output width."
            )
        with torch.autocast(query.device.type, enabled=False):
            query, key = query.float(), key.float()
            if self.normalized:
                query, key = normalize(query, dim=1), normalize(key, dim=1)
            positive = (query * key).sum(1, keepdim=True)  # (B, 1)
            others = query.new_zeros(len(query), 0) if negatives is None else query @ negatives.float().T  # (B, K)
            left_out = torch.zeros_like(others, dtype=torch.bool) if exclude is None else exclude
            if self.objective == "ip":
                return (1 - positive).mean() + (1 + others).masked_fill(left_out, 0).sum(1).mean()
            positive, others = positive / self.temperature, others / self.temperature
            if self.objective == "bce":
                return softplus(-positive).mean() + softplus(others).masked_fill(left_out, 0).sum(1).mean()
            return entropy_of_positive(positive, others.masked_fill(left_out, -torch.inf), self.alpha)
