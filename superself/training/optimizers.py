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
