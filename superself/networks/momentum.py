"""MomentumEncoder: a network whose weights follow those of another network slowly."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class MomentumEncoder(nn.Module):
    """A copy of an online network whose weights are a moving average of the online ones: BYOL's target, MoCo's key encoder.

    xi <- m * xi + (1 - m) * theta after each optimiser step. It starts equal to the online network, gets no gradient and is
    part of the checkpoint. The memory formats of the two networks may differ.

    Source: He et al., MoCo, arXiv:1911.05722, Eq. 2; Grill et al., BYOL, arXiv:2006.07733, Eq. 1.
    Deviations: none. Buffers are not averaged: in train mode the batch norms of the copy normalise by the batch they are given
        and keep their own running statistics; other buffers keep the values they were copied with.
    Args:
        online: the network to follow.
    Shape:
        that of the online network.
    """

    def __init__(self, online: nn.Module) -> None:
        super().__init__()
        self.average = copy.deepcopy(online).requires_grad_(False)

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Any:
        """The output of the averaged network, without a gradient."""
        return self.average(*inputs)

    @torch.no_grad()
    def update(self, online: nn.Module, momentum: float) -> None:
        """Moves every weight towards the online one.

        Args:
            online: the network it was copied from.
            momentum: m, the fraction of the old weights that is kept.
        """
        torch._foreach_lerp_(list(self.average.parameters()), list(online.parameters()), 1 - momentum)
