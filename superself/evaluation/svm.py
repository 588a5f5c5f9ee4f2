"""Linear support vector machine on frozen features."""

from __future__ import annotations

from typing import Any

import torch

from superself.basics.validate import require_positive
from superself.evaluation.classification import Classification, match_classes
from superself.evaluation.extraction import Features
from superself.evaluation.labelled import LabelledEvaluator
from superself.evaluation.linear import choose_strength
from superself.evaluation.solver import LinearProblem

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def svm_classification(
    train: Features,
    test: Features,
    C: float | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    population: Features | None = None,
) -> Classification:
    """Classifies test images by linear support vector machines, one class against the rest.

    Each feature is standardised with the mean and standard deviation of the training set. The loss is the squared hinge, and
    the intercept is penalised like a weight, as in scikit-learn's LinearSVC. Rows of unreadable images are left out. Memory:
    about twice that of the features.

    Args:
        C: inverse strength of the penalty, in the meaning of LinearSVC; None: the one of ``STRENGTHS`` that is best on a
            fifth of each class.
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
        C = choose_strength(task.train, task.labels, seed, STRENGTHS, "squared_hinge", spread)
    problem = LinearProblem(task.train, task.labels, "squared_hinge", spread)
    protocol = (
        f"SVM: linear support vector machines on standardised features, one class against the rest, C = {C:g}{origin}; "
        f"{task.described}."
    )
    return task.result(problem.scores(problem.fit(C), task.test), protocol)


class LinearSVM(LabelledEvaluator):
    """The accuracy of a linear support vector machine on frozen features, as "svm"; see ``svm_classification``.

    Args:
        train, test: labelled images, anything that ``open_images`` takes.
        C: inverse strength of the penalty; None chooses it on a fifth of the training images.
        seed: decides which images choose C.
        options: of ``LabelledEvaluator``.
    """

    name = "svm"

    def __init__(self, train: Any, test: Any, C: float | None = None, seed: int = 0, **options: Any) -> None:
        super().__init__(train, test, **options)
        if C is not None:
            require_positive("C", C, "is the inverse strength of the penalty")
        self.C, self.seed = C, seed

    def classify(self, train: Features, test: Features, device: torch.device | None) -> Classification:
        """Support vector machines; see ``svm_classification``."""
        return svm_classification(train, test, self.C, self.seed, device)
