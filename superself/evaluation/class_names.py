"""Classes of two data sets are the same where their names are, whatever their numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def renumbered(labels: Tensor, classes: Sequence[str] | None, known_classes: Sequence[str] | None) -> Tensor:
    """The labels of a data set with each class numbered as in the training set.

    Where only one of the two has names, and these are numbers ("1", "10"), the other's labels are matched with them; names
    that are no numbers stand for 0, 1, ... in their order.

    Args:
        labels: (N,) numbers of ``classes``, -1 for none.
        classes: names of the data set's classes; None if the labels have no names.
        known_classes: names of the classes in training, or None.
    Raises:
        ValueError: if there are classes that ``known_classes`` does not have.
    """
    if classes is known_classes is None or (classes and known_classes and list(classes) == list(known_classes)):
        return labels
    if known_classes is None:
        return _at(labels, [int(name) for name in classes]) if are_numbers(classes) else labels
    places = {name: place for place, name in enumerate(known_classes)}
    if classes is None:
        if not any(_is_number(name) for name in known_classes):
            return labels
        occurring, rows = labels.unique(return_inverse=True)
        names = [str(label) for label in occurring.tolist()]
        _refuse_unknown(set(names) - {"-1"}, places)
        return torch.tensor([places.get(name, -1) for name in names], device=labels.device)[rows]
    _refuse_unknown(set(classes), places)
    return _at(labels, [places[name] for name in classes])


def are_numbers(names: Sequence[str] | None) -> bool:
    """Whether all names of classes are integers."""
    return names is not None and all(map(_is_number, names))


def _is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _at(labels: Tensor, numbers: list[int]) -> Tensor:
    """The numbers at the labels; -1 stays."""
    return torch.tensor([*numbers, -1], device=labels.device)[labels]


def _refuse_unknown(names: set[str], known: dict[str, int]) -> None:
    unknown = sorted(names - known.keys())
    if unknown:
        raise ValueError(f"test has the classes {unknown}, which train does not have; give both the same class names.")
