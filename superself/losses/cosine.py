"""Negative cosine similarity: the loss of joint embeddings without negatives."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity


class NegativeCosine(nn.Module):
    """Minus the cosine between prediction and target: -1 when they align, 0 when orthogonal.

    L = -<p, z> / (||p|| ||z||), averaged over the batch, in float32. No gradient flows into ``z``.

    Source: Chen & He, SimSiam, arXiv:2011.10566, Eq. 1.
    Deviations: none.
    Args:
        eps: lower bound of each norm, so that a zero vector gives 0.
    Shape:
        prediction (B, D), target (B, D) -> scalar ().
    Raises:
        ValueError: if the two shapes differ.
    """

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch."""
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape; give the predictor "
                "the output width of the projector."
            )
        return -cosine_similarity(prediction.float(), target.detach().float(), dim=1, eps=self.eps).mean()
