"""HCL: SimCLR's loss with hard negatives weighted up, and corrected for negatives of the same class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from superself.basics.validate import require_fraction, require_nonnegative
from superself.losses.two_views import TwoViewLoss


class HCL(TwoViewLoss):
    """Hard contrastive loss: negatives weigh more the more similar they are to the anchor.

    L = -log exp(p) / (exp(p) + Ng), averaged over all 2B embeddings. p is the similarity of the positive divided by t, n_k are
    those of the N = 2B - 2 negatives. Each is weighted by w_k = exp(beta n_k) over the mean of these over the N negatives, and
    the share ``tau_plus`` that is expected to be of the anchor's class is subtracted:
    Ng = (sum_k w_k exp(n_k) - tau_plus N exp(p)) / (1 - tau_plus), but at least N exp(-1/t). In float32 and in logarithms, so it
    stays finite at small temperatures. Where all similarities are equal the loss is ln(2B - 1), or ln(K + 1) with a bank; with
    beta = tau_plus = 0 it is NTXent.

    Source: Robinson et al., Contrastive Learning with Hard Negative Samples, arXiv:2010.04592, and the authors' code.
    Deviations: none.
    Args:
        temperature: t, divides similarities; smaller is sharper.
        beta: how much more hard negatives count; 0 weighs all alike.
        tau_plus: assumed probability that a negative is of the anchor's class, for example 1 / number of classes.
        memory_bank_size: K or (K, D) for negatives from a bank of earlier ``second``; see MemoryBankLoss.
    Shape:
        see TwoViewLoss.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        beta: float = 1.0,
        tau_plus: float = 0.1,
        memory_bank_size: int | Sequence[int] = 0,
    ) -> None:
        super().__init__(temperature, memory_bank_size)
        require_nonnegative("beta", beta, "is how much more hard negatives count")
        require_fraction("tau_plus", tau_plus, "is the share of negatives of the anchor's class", upper_open=True)
        self.beta, self.tau_plus = beta, tau_plus

    def loss_of_anchors(self, positives: Tensor, negatives: Tensor, excluded: Tensor) -> Tensor:
        """-log exp(p) / (exp(p) + Ng) of each anchor."""
        log_ng = log_hard_negatives(negatives, positives, ~excluded, self.temperature, self.beta, self.tau_plus)
        return softplus(log_ng - positives)


def log_hard_negatives(
    negatives: Tensor, positives: Tensor, counted: Tensor, temperature: float, beta: float, tau_plus: float
) -> Tensor:
    """log Ng, where Ng takes the place of the sum of exp(s / t) over the negatives of an anchor in HCL; see the class.

    Args:
        negatives: similarities divided by t, -inf where they do not count.
        positives: of each anchor, divided by t.
        counted: which negatives count, at least one for each anchor.
        temperature: t.
        beta: how much more hard negatives count.
        tau_plus: the assumed share of negatives of the anchor's class.
    Shape:
        negatives and counted (A, M), positives (A,) -> (A,).
    """
    log_count = counted.sum(1).log()  # log N
    log_ng = negatives.logsumexp(1)
    if beta:  # weights exp(beta n), divided by their mean over the negatives
        importance = beta * negatives
        log_ng = (importance + negatives).logsumexp(1) - (importance.logsumexp(1) - log_count)
    if not tau_plus:
        return log_ng
    smallest = log_count - 1 / temperature
    share = math.log(tau_plus) + log_count + positives - log_ng  # log of the part that is subtracted
    remains = share < 0
    rest = -torch.expm1(share.where(remains, -torch.ones_like(share)))  # 1 - exp(share), without NaN elsewhere
    debiased = log_ng + rest.log() - math.log1p(-tau_plus)
    return debiased.where(remains, smallest).maximum(smallest)
