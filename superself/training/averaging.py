"""WeightAverage: a moving average of the weights of a network, next to the weights that are trained."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """A moving average of the weights of a network; training does not depend on it.

    a <- d a + (1 - d) w after each step that was taken, with d = min(decay, (1 + t) / (10 + t)) after t steps, so that the
    first weights do not dominate short runs. Floating-point buffers, such as the running statistics of batch norm, are averaged
    like weights; others are copied. The average starts equal to the network.

    Source: Polyak & Juditsky, Acceleration of Stochastic Approximation by Averaging, doi:10.1137/0330046; as a moving average
        in Tarvainen & Valpola, Mean Teachers, arXiv:1703.01780.
    Deviations: none.
    Args:
        network: the network that is trained.
        decay: d, the fraction of the average that is kept at each step.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        live = {
            name: tensor for name, tensor in network.state_dict(keep_vars=True).items() if isinstance(tensor, Tensor)
        }
        self.values = {name: tensor.detach().clone() for name, tensor in live.items()}
        pairs = [(self.values[name], tensor) for name, tensor in live.items()]
        self._moving = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the weights; waits for nothing."""
        kept = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        if self._moving:
            averages, weights = map(list, zip(*self._moving, strict=True))
            torch._foreach_lerp_(averages, weights, 1 - kept)
        for average, now in self._copied:
            average.copy_(now)

    def state_dict(self) -> dict[str, Any]:
        """The average and the number of updates, for a checkpoint."""
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a stored average."""
        self.updates = state["updates"]
        for name, value in state["values"].items():
            self.values[name].copy_(value)


@torch.no_grad()
def averaged_copy(network: nn.Module, values: dict[str, Tensor]) -> nn.Module:
    """A copy of ``network``, on its device and in its mode, with other weights and buffers."""
    made = copy.deepcopy(network)
    own = made.state_dict()
    for name, value in values.items():
        own[name].copy_(value)
    return made
