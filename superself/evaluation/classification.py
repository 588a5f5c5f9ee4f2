"""Classification: what a classifier got right and wrong, and what it was measured with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Classification:
    """Predictions of a classifier on test images.

    Args:
        scores: (N, K) for each class, larger is more likely; of any scale.
        labels: (N,) the true class of each image, from 0 to K - 1.
        classes: K names, or None.
        protocol: one sentence: what was fitted to what, and how.
    """

    scores: Tensor
    labels: Tensor
    classes: list[str] | None = None
    protocol: str = ""
