"""Cross-entropy where some images have no class."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from superself.basics.distributed import mean, world_size

NO_CLASS = -1  # the class of an image that has none


def known_cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy averaged over the images that have a class, those of all processes; 0 if none has one.

    Shape:
        logits (B, K), classes (B,) from 0 to K - 1, or -1 for none -> scalar ().
    """
    with torch.autocast(logits.device.type, enabled=False):
        total = cross_entropy(logits.float(), classes, ignore_index=NO_CLASS, reduction="sum")
        return total / mean((classes != NO_CLASS).float().sum()).clamp_min(1 / world_size())
