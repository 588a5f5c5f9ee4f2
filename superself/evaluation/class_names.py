"""Classes of two data sets are the same where their names are, whatever their numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def renumbered(labels: Tensor, classes: Sequence[str] | None, known_classes: Sequence[str] | None) -> Tensor:
    """The labels of a test set with each class numbered as in training; unchanged if one of the two has no names.

    Args:
        labels: (N,) numbers of ``classes``, -1 for none.
        classes: names of the test set's classes.
        known_classes: names of the classes in training.
    Raises:
        ValueError: if ``classes`` has names that ``known_classes`` does not have.
    """
    if classes is None or known_classes is None or list(classes) == list(known_classes):
        return labels
    unknown = sorted(set(classes) - set(known_classes))
    if unknown:
        raise ValueError(f"test has the classes {unknown}, which train does not have; give both the same class names.")
    numbers = torch.tensor([known_classes.index(name) for name in classes] + [-1])
    return numbers[labels]
