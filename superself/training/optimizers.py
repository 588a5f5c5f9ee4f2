"""Parameter groups."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: weights of two or more dimensions with weight decay; biases, norms and scalars without.

    Chosen by the number of dimensions, not by name, so that it holds for modules of every make.

    Args:
        parameters: for example ``model.parameters()``; frozen ones are left out.
        weight_decay: of the first group, for example 1e-4 (SGD) or 0.05 (AdamW on transformers).
    """
    trainable = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def can_fuse(optimizer: Callable[..., Optimizer], device: torch.device) -> bool:
    """Whether ``optimizer`` updates all parameters in one kernel there: it takes ``fused=`` and it has not been set."""
    if device.type not in ("cpu", "cuda"):
        return False
    parameter = inspect.signature(optimizer).parameters.get("fused")
    return parameter is not None and parameter.default is None


class OptimizerPair(Optimizer):
    """Two optimisers that look like one: to schedules, which set the groups of both, and to the checkpoint.

    Args:
        first: of the first player.
        second: of the second player.
    """

    def __init__(self, first: Optimizer, second: Optimizer) -> None:
        super().__init__([*first.param_groups, *second.param_groups], {})  # the very groups of the two
        self.first, self.second = first, second
        self.defaults = first.defaults  # schedules that move a momentum too look there for it

    def step(self, closure: None = None) -> None:
        """One step of both."""
        self.first.step()
        self.second.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients of both."""
        self.first.zero_grad(set_to_none)
        self.second.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"first": self.first.state_dict(), "second": self.second.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the states of both."""
        self.first.load_state_dict(state_dict["first"])
        self.second.load_state_dict(state_dict["second"])
        self.param_groups = [*self.first.param_groups, *self.second.param_groups]  # loading makes new ones
