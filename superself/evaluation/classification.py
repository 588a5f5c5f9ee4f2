"""Classification: what a classifier got right and wrong, and what it was measured with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import torch
from torch import Tensor

from superself.evaluation.class_names import are_numbers, renumbered
from superself.evaluation.extraction import Features, classified

LISTED = 20  # classes in a printed table


@dataclass(frozen=True, eq=False)
class Classification:
    """Predictions of a classifier on test images.

    Args:
        scores: (N, K) for each class, larger is more likely; of any scale. Minus infinity: a class that the classifier has
            not seen.
        labels: (N,) the true class of each image, from 0 to K - 1.
        classes: K names, or None.
        protocol: one sentence: what was fitted to what, and how.
    Raises:
        ValueError: if the shapes do not fit, there are no images, a label is out of range, or a score is NaN.
    """

    scores: Tensor
    labels: Tensor
    classes: list[str] | None = None
    protocol: str = ""

    def __post_init__(self) -> None:
        shape = tuple(self.scores.shape)
        if len(shape) != 2 or 0 in shape or self.labels.shape != shape[:1]:
            raise ValueError(
                f"scores {shape} and labels {tuple(self.labels.shape)} do not fit; pass (N, K) and (N,) with at least one image."
            )
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= shape[1]:
            raise ValueError(
                f"labels are from {low} to {high}, and there are scores for {shape[1]} classes; number them from 0."
            )
        if self.classes is not None and len(self.classes) != shape[1]:
            raise ValueError(
                f"{len(self.classes)} class names for {shape[1]} classes; pass one name per class, or None."
            )
        if self.scores.isnan().any():
            raise ValueError("scores contain NaN; pass features that are finite.")

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def predictions(self) -> Tensor:
        """The class with the largest score (N,); the first of those that are equal."""
        return self.scores.argmax(dim=1)

    @property
    def top1(self) -> float:
        """The fraction of images whose true class has the largest score."""
        return (self.predictions == self.labels).double().mean().item()

    @property
    def top5(self) -> float:
        """The fraction of images whose true class is among the five largest scores; needs six classes, see ``top``."""
        return self.top(5)

    def top(self, k: int) -> float:
        """The fraction of images whose true class is among the ``k`` largest scores.

        Of equal scores the first class counts as larger; a class that the classifier has not seen is never among them.

        Raises:
            ValueError: if k is not between 1 and K - 1: with K classes, k = K is right whatever the features are.
        """
        if not 1 <= k < self.scores.shape[1]:
            raise ValueError(
                f"top-{k} accuracy of {self.scores.shape[1]} classes says nothing about the features; pass a k from 1 to "
                f"{self.scores.shape[1] - 1}."
            )
        true = self.scores.gather(1, self.labels[:, None])  # (N, 1)
        earlier = torch.arange(self.scores.shape[1]) < self.labels[:, None]  # (N, K)
        before = ((self.scores > true) | ((self.scores == true) & earlier)).sum(
            dim=1
        )  # (N,) classes ahead of the true one
        return ((before < k) & (true[:, 0] > -torch.inf)).double().mean().item()

    @cached_property
    def confusion(self) -> Tensor:
        """Counts (K, K) int64: row i, column j is the number of images of class i that were taken for class j."""
        classes = self.scores.shape[1]
        return torch.bincount(self.labels * classes + self.predictions, minlength=classes**2).view(classes, classes)

    @property
    def names(self) -> list[str]:
        """A name for each class: those in ``classes``, or the labels."""
        return [str(label) for label in range(self.scores.shape[1])] if self.classes is None else list(self.classes)

    @property
    def per_class(self) -> dict[str, float]:
        """The accuracy on the images of each class, by its name; NaN for a class without test images."""
        shares = self.confusion.diagonal().double() / self.confusion.sum(dim=1)  # 0 / 0 is NaN
        return dict(zip(self.names, shares.tolist(), strict=True))

    @property
    def balanced(self) -> float:
        """Balanced accuracy: the mean of ``per_class`` over the classes with test images, so that all weigh the same."""
        return torch.tensor(list(self.per_class.values()), dtype=torch.float64).nanmean().item()

    @property
    def standard_error(self) -> float:
        """Of ``top1``, from the number of test images: sqrt(p (1 - p) / N). The training images count as fixed."""
        return math.sqrt(self.top1 * (1 - self.top1) / len(self))

    def confidence_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Bounds of ``top1`` from the number of test images: Wilson's interval, which holds at 0 and 1 too.

        (p + z^2 / 2N ± z sqrt(p (1 - p) / N + z^2 / 4N^2)) / (1 + z^2 / N).

        Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927.
        """
        if not 0 < level < 1:
            raise ValueError(f"level={level} is not a probability; pass one between 0 and 1, for example 0.95.")
        z, count, p = NormalDist().inv_cdf((1 + level) / 2), len(self), self.top1
        middle = p + z**2 / (2 * count)
        reach = z * math.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
        low, high = ((middle + sign * reach) / (1 + z**2 / count) for sign in (-1, 1))
        return max(0.0, low), min(1.0, high)

    def __str__(self) -> str:
        """A table: the accuracies, and the classes with the lowest ones."""
        images = self.confusion.sum(dim=1)
        tested = int((images > 0).sum())
        low, high = self.confidence_interval()
        lines = [
            f"top-1 {self.top1:.1%} ({low:.1%} to {high:.1%} with 95 % confidence), balanced {self.balanced:.1%}"
            + (f", top-5 {self.top5:.1%}" if self.scores.shape[1] > 5 else "")
            + f"; {len(self)} test images of {tested} classes.",
            *([self.protocol] if self.protocol else []),
        ]
        mistakes = self.confusion - self.confusion.diagonal().diag()
        rows = [
            (accuracy, name, place)
            for place, (name, accuracy) in enumerate(self.per_class.items())
            if not math.isnan(accuracy)
        ]
        width = max(5, *(len(name) for name in self.names))
        lines.append(f"{'class':<{width}}{'images':>8}{'accuracy':>10}  most often taken for")
        for accuracy, name, place in sorted(rows)[:LISTED]:
            count, other = mistakes[place].max(dim=0)
            taken = f"{self.names[int(other)]} ({int(count)})" if count > 0 else "-"
            lines.append(f"{name:<{width}}{int(images[place]):>8}{accuracy:>10.1%}  {taken}")
        if tested > LISTED:
            lines.append(f"and {tested - LISTED} classes with higher accuracy")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Task:
    """Training and test features whose classes are numbered together; made by ``match_classes``.

    Args:
        train: (N, D) features.
        labels: (N,) the class of each, from 0 to S - 1: the place in ``seen``.
        seen: (S,) the classes that occur in the training set, from 0 to K - 1.
        test: (M, D) features.
        test_labels: (M,) from 0 to K - 1.
        count: K.
        classes: K names, or None.
    """

    train: Tensor
    labels: Tensor
    seen: Tensor
    test: Tensor
    test_labels: Tensor
    count: int
    classes: list[str] | None

    def result(self, scores: Tensor, protocol: str) -> Classification:
        """The classification with the scores (M, S) of the classes that occur in the training set."""
        every = torch.full((len(scores), self.count), -torch.inf)
        every[:, self.seen] = scores.float().cpu()
        return Classification(every, self.test_labels, self.classes, protocol)

    @property
    def described(self) -> str:
        """The numbers of images, for a protocol."""
        return f"{len(self.train)} training and {len(self.test)} test images of {self.count} classes"


def match_classes(train: Features, test: Features, device: torch.device | None = None, fewest: int = 1) -> Task:
    """Brings labelled features into one numbering of classes; rows of unreadable images are left out.

    Where sets have class names, test labels are numbered as in the training set, see ``renumbered``. Labels that are not
    0, ..., K - 1 are renumbered in their order and become the names.

    Args:
        device: where the features are wanted; None leaves them.
        fewest: classes that the training set needs.
    Raises:
        ValueError: if one of the two has no class labels (N,), their widths differ, ``test`` has a class name that
            ``train`` does not have, or the training images are of fewer classes than ``fewest``.
    """
    train, test = classified(train, "train"), classified(test, "test")
    if train.features.shape[1] != test.features.shape[1]:
        raise ValueError(
            f"train has features of width {train.features.shape[1]} and test of {test.features.shape[1]}; "
            "compute both with the same backbone."
        )
    known, asked = train.labels.long(), renumbered(test.labels.long(), test.classes, train.classes)
    classes = train.classes or (None if are_numbers(test.classes) else test.classes)
    if classes is None:
        occurring, places = torch.cat([known, asked]).unique(return_inverse=True)
        if occurring[0] < 0 or occurring[-1] >= len(occurring):  # not 0, ..., K - 1
            classes, (known, asked) = (
                [str(label) for label in occurring.tolist()],
                places.split([len(known), len(asked)]),
            )
        count = len(occurring)
    else:
        count = len(classes)
        for role, labels in (("train", known), ("test", asked)):
            if labels.min() < 0 or labels.max() >= count:
                raise ValueError(
                    f"{role} has labels from {int(labels.min())} to {int(labels.max())}, and there are {count} class names; "
                    "number the classes from 0, in the order of their names."
                )
    seen, labels = known.unique(return_inverse=True)
    if len(seen) < fewest:
        listed = train.labels.unique().tolist()
        raise ValueError(
            f"the training images have the labels {listed}, and a linear probe needs at least {fewest} classes; "
            "give training images of all classes."
        )
    x, y = train.features.to(device), test.features.to(device)
    return Task(x, labels.to(device), seen, y, asked, count, classes)
