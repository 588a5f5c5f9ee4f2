"""Linear probe: the accuracy of a linear classifier on frozen features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from superself.basics.validate import require_positive
from superself.evaluation.classification import Classification, match_classes
from superself.evaluation.extraction import Features
from superself.evaluation.labelled import LabelledEvaluator
from superself.evaluation.solver import LinearProblem

REGULARISATIONS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def linear_accuracy(train: Features, test: Features, C: float | None = None, seed: int = 0) -> float:
    """The fraction of test images that logistic regression on the features classifies correctly.

    See ``linear_classification``, of which this is ``top1``.
    """
    return linear_classification(train, test, C, seed).top1


def linear_classification(
    train: Features,
    test: Features,
    C: float | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    population: Features | None = None,
) -> Classification:
    """Classifies test images by logistic regression on the features.

    Each feature is standardised with the mean and standard deviation of the training set (a constant one becomes 0).
    Multinomial logistic regression with an L2 penalty is then fitted to all training images. Rows of unreadable images are
    left out. Memory: about twice that of the features.

    Args:
        C: inverse strength of the penalty, in the meaning of scikit-learn's LogisticRegression; None:
            ``choose_regularisation``.
        seed: decides which images choose C.
        device: where to compute; None: where the features are.
        population: features whose standard deviations are used instead of those of ``train``, which they may contain; they
            need no labels. With few labelled images the deviations of these alone are poor.
    Raises:
        ValueError: if one of the two has no class labels (N,), or the training images are of fewer than two classes.
    """
    if C is not None:
        require_positive("C", C, "is the inverse strength of the penalty")
    task = match_classes(train, test, device, fewest=2)
    origin = "" if C is not None else " (chosen on a fifth of the training images)"
    spread = None if population is None else population.readable().features.to(task.train.device)
    if C is None:
        C = choose_strength(task.train, task.labels, seed, REGULARISATIONS, "logistic", spread)
    problem = LinearProblem(task.train, task.labels, "logistic", spread)
    protocol = f"Linear: logistic regression on standardised features, C = {C:g}{origin}; {task.described}."
    return task.result(problem.scores(problem.fit(C), task.test), protocol)


def choose_regularisation(train: Features, seed: int = 0, device: torch.device | None = None) -> float:
    """The C of ``REGULARISATIONS`` that is best on a fifth of each class when fitted to the rest; the smallest if tied.

    Raises:
        ValueError: if the training images are of fewer than two classes, or no class has two images.
    """
    task = match_classes(train, train, device, fewest=2)
    return choose_strength(task.train, task.labels, seed, REGULARISATIONS, "logistic")


def choose_strength(
    features: Tensor,
    labels: Tensor,
    seed: int,
    strengths: tuple[float, ...],
    loss: str,
    population: Tensor | None = None,
) -> float:
    """The strength that is best on a fifth of each class when fitted to the rest; the smallest if tied.

    The arguments are those of ``LinearProblem``; ``seed`` decides which images are held out.
    """
    chosen = hold_out_a_fifth(labels.cpu(), seed).to(labels.device)
    if not chosen.any():
        raise ValueError(
            f"the {len(chosen)} training images are all of different classes, so none can be held out to choose C; "
            "give at least two images of a class, or pass C=."
        )
    problem = LinearProblem(features[~chosen], labels[~chosen], loss, population)
    held_out, truth = features[chosen], labels[chosen]
    correct = {
        C: int((problem.scores(weights, held_out).argmax(dim=1) == truth).sum())
        for C, weights in problem.path(strengths)
    }
    return max(correct, key=correct.get)


def hold_out_a_fifth(labels: Tensor, seed: int) -> Tensor:
    """Which images (N,) bool are held out: a fifth of each class, at least one, but none of a class with a single image."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        chosen[shuffled[: (len(members) + 3) // 5]] = True
    return chosen


class LinearProbe(LabelledEvaluator):
    """The accuracy of logistic regression on frozen features, as "linear"; see ``linear_classification``.

    Args:
        train, test: labelled images, anything that ``open_images`` takes.
        C: inverse strength of the penalty; None chooses it on a fifth of the training images.
        seed: decides which images choose C.
        options: of ``LabelledEvaluator``.
    """

    name = "linear"

    def __init__(self, train: Any, test: Any, C: float | None = None, seed: int = 0, **options: Any) -> None:
        super().__init__(train, test, **options)
        if C is not None:
            require_positive("C", C, "is the inverse strength of the penalty")
        self.C, self.seed = C, seed

    def classify(self, train: Features, test: Features, device: torch.device | None) -> Classification:
        """Logistic regression; see ``linear_classification``."""
        return linear_classification(train, test, self.C, self.seed, device)
