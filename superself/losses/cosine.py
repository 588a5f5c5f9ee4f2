"""Negative cosine similarity, one way and symmetric: the losses of joint embeddings without negatives."""

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


class SymmetricNegativeCosine(nn.Module):
    """``NegativeCosine`` from each view to the other: -1 when predictions and targets align, 0 when they are orthogonal.

    L = 1/2 D(p_1, z_2) + 1/2 D(p_2, z_1) with D minus the cosine. No gradient flows into an embedding as a target.

    Source: Chen & He, SimSiam, arXiv:2011.10566, Sec. 3.
    Deviations: none.
    Args:
        eps: lower bound of each norm, so that a zero vector gives 0.
    Shape:
        first and second view, each a pair of embedding z (B, D) and prediction p (B, D) -> scalar ().
    Raises:
        ValueError: if the shapes differ.
    """

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        self.direction = NegativeCosine(eps)

    def forward(self, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
        """The loss of a batch."""
        (first_embedding, first_prediction), (second_embedding, second_prediction) = first, second
        forth = self.direction(first_prediction, second_embedding)
        return (forth + self.direction(second_prediction, first_embedding)) / 2
