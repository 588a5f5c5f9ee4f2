"""Predictions: the classes of images, with probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from superself.evaluation.similarity.listing import Listing


@dataclass(frozen=True, eq=False, repr=False)
class Predictions(Listing):
    """What ``LabelSupervisor.predict`` found, one row for each image that could be read, in their order.

    Args:
        classes: K names; "0", "1", ... where the training images had none.
        probabilities: (N, K); rows add up to 1, unless an image can have several classes.
        labels: (N,) the most probable class; (N, K) bool, above one half, where an image can have several classes.
        paths: N file names, or None if the images do not come from files.
        skipped: name of each unreadable image -> reason.
    """

    classes: list[str]
    probabilities: Tensor
    labels: Tensor
    paths: list[str] | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def names(self) -> list[Any]:
        """The class of each image by name, or a list of its classes where it can have several."""
        if self.labels.ndim == 1:
            return [self.classes[label] for label in self.labels.tolist()]
        return [[self.classes[k] for k in row.nonzero().flatten().tolist()] for row in self.labels]

    def head(self) -> tuple[str, ...]:
        """Names of the columns."""
        return ("row" if self.paths is None else "path", "label", *self.classes)

    def lines(self) -> Iterator[tuple[Any, ...]]:
        """File name or number, class (several are joined by semicolons), and the probability of each class."""
        names = range(len(self)) if self.paths is None else self.paths
        for name, label, row in zip(names, self.names, self.probabilities.tolist(), strict=True):
            yield (name, label if isinstance(label, str) else ";".join(label), *row)

    def summary(self) -> str:
        """How many images and classes there are."""
        paths = "" if self.paths is None else ", with paths"
        return f"{len(self)} predictions over {len(self.classes)} classes{paths}, {len(self.skipped)} skipped"

    def __repr__(self) -> str:
        return self.summary()

    def __str__(self) -> str:
        return self.summary()
