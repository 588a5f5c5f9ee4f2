"""Prototypes: directions that embeddings are compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from superself.basics.validate import require_count


class Prototypes(nn.Module):
    """The cosines between embeddings and K trained directions, in float32.

    The rows of the weight may have any length, only their directions count: a linear layer with weight normalisation whose
    gains are fixed at 1, applied to embeddings of unit length.

    Source: Salimans & Kingma, Weight Normalization, arXiv:1602.07868; as the last layer in Caron et al., SwAV, arXiv:2006.09882,
        and DINO, arXiv:2104.14294.
    Deviations: none.
    Args:
        width: D of an embedding.
        count: K.
    Shape:
        (B, D) -> (B, K).
    Raises:
        ValueError: if ``count`` is below 1.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        require_count("count", count, "is the number of prototypes")
        self.weight = nn.Parameter(torch.empty(count, width).uniform_(-(width**-0.5), width**-0.5))  # as nn.Linear

    def forward(self, embeddings: Tensor) -> Tensor:
        """The cosine with each prototype."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return linear(normalize(embeddings.float(), dim=1), normalize(self.weight.float(), dim=1))

    @torch.no_grad()
    def renormalize(self) -> None:
        """Scales the rows of the weight to unit length; the output stays the same."""
        self.weight.copy_(normalize(self.weight, dim=1))

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.weight.shape[1]}, {len(self.weight)}"
