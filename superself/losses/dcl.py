"""DCL and DCLW: SimCLR's loss without the positive in the denominator."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from superself.basics.distributed import gather
from superself.basics.validate import require_positive
from superself.losses.two_views import TwoViewLoss


class DCL(TwoViewLoss):
    """Decoupled contrastive loss: the positive is not among the candidates, so its pull does not fade in small batches.

    L = -z_i.z_j / t + log sum_k exp(z_i.z_k / t), averaged over all 2B embeddings i: j is the other view of the same image, and k
    runs over both views of the other images, 2B - 2, of the batches of all processes; in float32. It has no lower bound of 0;
    where all similarities are equal it is ln(2B - 2), or ln K with a bank.

    Source: Yeh et al., Decoupled Contrastive Learning, arXiv:2110.06848.
    Deviations: none.
    Args:
        temperature: t, divides similarities; smaller is sharper.
        memory_bank_size: K or (K, D) for negatives from a bank of earlier ``second``; see MemoryBankLoss.
    Shape:
        see TwoViewLoss.
    """

    def __init__(self, temperature: float = 0.1, memory_bank_size: int | Sequence[int] = 0) -> None:
        super().__init__(temperature, memory_bank_size)

    def loss_of_anchors(self, positives: Tensor, negatives: Tensor, excluded: Tensor) -> Tensor:
        """-w p + log sum exp(n) of each anchor."""
        return negatives.logsumexp(1) - self.weights(positives) * positives

    def weights(self, positives: Tensor) -> Tensor | float:
        """w, from the similarities of the positives, divided by t. Shape: (A,) -> (A,), or one number for all."""
        return 1.0


class DCLW(DCL):
    """DCL whose positives weigh more the less similar they are.

    Positives are multiplied by w_i = 2 - exp(z_i.z_j / sigma) / mean_n exp(z_n.z_m / sigma), a negative von Mises-Fisher weight:
    the mean is over the positives of all images, so that the weights are 1 on average. They get no gradient.

    Source: Yeh et al., Decoupled Contrastive Learning, arXiv:2110.06848.
    Deviations: none known; of two public implementations, one lets the gradient flow through the weights and one, like this
        one, does not.
    Args:
        temperature: t, divides similarities; smaller is sharper.
        sigma: divides similarities in the weights; smaller weighs images more differently.
        memory_bank_size: K or (K, D) for negatives from a bank of earlier ``second``; see MemoryBankLoss.
    Shape:
        see TwoViewLoss.
    """

    def __init__(self, temperature: float = 0.1, sigma: float = 0.5, memory_bank_size: int | Sequence[int] = 0) -> None:
        super().__init__(temperature, memory_bank_size)
        require_positive("sigma", sigma, "divides similarities in the weights of positives")
        self.sigma = sigma

    def weights(self, positives: Tensor) -> Tensor:
        """2 - exp(z_i.z_j / sigma) over its mean over all positives."""
        similarities = positives.detach() * (self.temperature / self.sigma)
        everyone = gather(similarities)
        log_mean = everyone.logsumexp(0) - math.log(len(everyone))
        return 2 - (similarities - log_mean).exp()
