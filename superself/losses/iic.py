"""IIC: minus the mutual information of the cluster assignments of paired images."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from superself.basics.distributed import mean
from superself.basics.validate import require_positive


class IICLoss(nn.Module):
    """Minus the mutual information of two cluster assignments: 0 if they are independent, -ln K at best.

    L = -sum_cd P_cd (ln P_cd - lamb ln P_c - lamb ln P_d), averaged over heads. P = (Q + Q^T) / 2 with
    Q = 1/B sum_b softmax(first_b) softmax(second_b)^T, over the batches of all processes; P_c and P_d are its marginals. Values
    below ``eps`` count as ``eps``.

    Source: Ji et al., Invariant Information Clustering, arXiv:1807.06653; lamb and eps from the authors' code.
    Deviations: takes logits, so that probabilities are float32 under mixed precision.
    Args:
        lamb: weight of the marginals; above 1 it demands clusters of equal size more strongly.
        eps: smallest probability.
    Shape:
        first (..., B, K), second (..., B, K) logits, one leading entry for each head -> scalar ().
    Raises:
        ValueError: if a number is not positive, or the two shapes differ.
    """

    def __init__(self, lamb: float = 1.0, eps: float = sys.float_info.epsilon) -> None:
        super().__init__()
        require_positive("lamb", lamb, "is the weight of the marginals")
        require_positive("eps", eps, "is the smallest probability")
        self.lamb, self.eps = lamb, eps

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss of a batch."""
        joint = joint_probabilities(first, second)
        return -mutual_information(joint, self.lamb, self.eps).mean()


def joint_probabilities(first: Tensor, second: Tensor) -> Tensor:
    """How often cluster c and cluster d are assigned to the two images of a pair, symmetric, in float32.

    Shape:
        first (..., B, K), second (..., B, K) logits -> (..., K, K), which sums to 1.
    """
    if first.shape != second.shape or first.ndim < 2:
        raise ValueError(
            f"the logits of the pairs have shapes {tuple(first.shape)} and {tuple(second.shape)}; pass two of the same shape "
            "(..., B, K)."
        )
    with torch.autocast(first.device.type, enabled=False):
        p, q = first.float().softmax(-1), second.float().softmax(-1)
        joint = mean(p.mT @ q / p.shape[-2])  # (..., K, K)
        joint = (joint + joint.mT) / 2
        return joint / joint.sum((-2, -1), keepdim=True)


def mutual_information(joint: Tensor, lamb: float = 1.0, eps: float = sys.float_info.epsilon) -> Tensor:
    """sum_cd P_cd (ln P_cd - lamb ln P_c - lamb ln P_d), in nats. Shape: joint probabilities (..., K, K) -> (...)."""
    with torch.autocast(joint.device.type, enabled=False):
        first, second = joint.sum(-1, keepdim=True), joint.sum(-2, keepdim=True)
        joint, first, second = (part.clamp_min(eps) for part in (joint, first, second))
        return (joint * (joint.log() - lamb * (first.log() + second.log()))).sum((-2, -1))
