"""One batch of images and what comes with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate


@dataclass
class Batch:
    """Images of one step, and what the data set has for each of them.

    Args:
        images: (B, C, H, W).
        index: (B,) positions in the data set.
        target: whatever the data set returns next to the image.
        mask: (B, H, W) or (B, M, H, W) segment maps.
        views: ready-made views, each (B, C, h, w).
    """

    images: Tensor
    index: Tensor | None = None
    target: Any = None
    mask: Tensor | None = None
    views: list[Tensor] | None = None


def stack_targets(targets: Sequence[Any]) -> Any:
    """One target per image as a tensor (B, ...) where ``default_collate`` can stack them, else as a list; or None."""
    targets = list(targets)
    if all(target is None for target in targets):
        return None
    try:
        return default_collate(targets)
    except (TypeError, RuntimeError, ValueError, KeyError):
        return targets
