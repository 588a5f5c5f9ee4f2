"""NTXent: cross-entropy of finding the other view of the same image among the views of a batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import softplus

from superself.losses.two_views import TwoViewLoss


class NTXent(TwoViewLoss):
    """SimCLR's loss: cross-entropy of finding the other view of an image among both views of all images.

    L = -log exp(z_i.z_j / t) / sum_k exp(z_i.z_k / t), averaged over all 2B embeddings i: j is the other view of the same
    image, and k runs over all 2B - 1 embeddings but i, of the batches of all processes; in float32. The chance level is
    ln(2B - 1). With ``memory_bank_size`` only ``first`` is compared, with ``second`` and the K rows of the bank, as in MoCo; the
    chance level is then ln(K + 1).

    Source: Chen et al., SimCLR, arXiv:2002.05709, and the authors' code.
    Deviations: none.
    Args:
        temperature: t, divides similarities; smaller is sharper.
        memory_bank_size: K or (K, D) for negatives from a bank of earlier ``second``; see MemoryBankLoss.
    Shape:
        see TwoViewLoss.
    """

    def __init__(self, temperature: float = 0.5, memory_bank_size: int | Sequence[int] = 0) -> None:
        super().__init__(temperature, memory_bank_size)

    def loss_of_anchors(self, positives: Tensor, negatives: Tensor, excluded: Tensor) -> Tensor:
        """-log exp(p) / (exp(p) + sum exp(n)) of each anchor."""
        return softplus(negatives.logsumexp(1) - positives)
