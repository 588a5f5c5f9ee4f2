"""Ridge regression to the classes, in closed form: a linear probe from one eigendecomposition."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from superself.basics.validate import require_positive
from superself.evaluation.classification import Classification, match_classes
from superself.evaluation.extraction import Features
from superself.evaluation.labelled import LabelledEvaluator
from superself.evaluation.solver import Scale

PENALTIES = tuple(10.0**power for power in range(-6, 3))  # per training image
LARGEST = 10_000  # of features or images, whichever are fewer: their eigendecomposition takes minutes


class Rotated(NamedTuple):
    """Training features in the basis of their principal components.

    Args:
        basis: (D, R) directions.
        values: (R,) eigenvalues of X^T X, all above 0.
        x: (N, R) features in that basis.
    """

    basis: Tensor
    values: Tensor
    x: Tensor


def ridge_classification(
    train: Features,
    test: Features,
    alpha: float | None = None,
    device: torch.device | None = None,
    population: Features | None = None,
) -> Classification:
    """Classifies test images by ridge regression of one-hot classes on the features.

    Each feature is standardised with the mean and standard deviation of the training set. One eigendecomposition of
    min(N, D) x min(N, D) gives the weights for all penalties: W = (X^T X + alpha I)^-1 X^T Y. Nothing is drawn. Rows of
    unreadable images are left out. Memory: about three times that of the features.

    Args:
        alpha: strength of the penalty, in the meaning of scikit-learn's RidgeClassifier; None: the one of ``PENALTIES`` times
            N with the highest leave-one-out accuracy on the training images, the strongest if tied.
        device: where to compute; None: where the features are.
        population: features whose standard deviations are used instead of those of ``train``, which they may contain; they
            need no labels. With few labelled images the deviations of these alone are poor.
    Raises:
        ValueError: if one of the two has no class labels (N,), the training images are of fewer than two classes, or both
            the features and the images are too many.
    """
    if alpha is not None:
        require_positive("alpha", alpha, "is the strength of the penalty")
    task = match_classes(train, test, device, fewest=2)
    if min(task.train.shape) > LARGEST:
        raise ValueError(
            f"ridge regression of {len(task.train)} images with {task.train.shape[1]} features needs an eigendecomposition of "
            f"{min(task.train.shape)} x {min(task.train.shape)}, more than {LARGEST}; pass fewer of one, or use "
            "linear_classification()."
        )
    spread = None if population is None else population.readable().features.to(task.train.device)
    scale = Scale.of(task.train, spread)
    rotated = _rotate(scale(task.train))
    targets = F.one_hot(task.labels, len(task.seen)).to(rotated.x.dtype)  # (N, S)
    origin = "" if alpha is not None else " (chosen by leaving one out)"
    if alpha is None:
        penalties = [penalty * len(task.train) for penalty in reversed(PENALTIES)]
        alpha = max(penalties, key=lambda alpha: leave_one_out_accuracy(rotated, targets, alpha))
    intercept = targets.mean(dim=0)  # (S,); the features have mean 0
    solution = rotated.x.T @ (targets - intercept) / (rotated.values + alpha)[:, None]  # (R, S)
    scores = intercept + scale(task.test) @ (rotated.basis @ solution)  # (M, S)
    protocol = (
        f"Ridge: regression of one-hot classes on standardised features, alpha = {alpha:g}{origin}; {task.described}."
    )
    return task.result(scores, protocol)


def leave_one_out_accuracy(rotated: Rotated, targets: Tensor, alpha: float) -> float:
    """The accuracy on each training image of the ridge regression that is fitted to all others.

    It needs no further fit: prediction without image i = y_i - (y_i - f_i) / (1 - h_i), with the fit f_i of all images and
    the leverage h_i = 1 / N + sum_r x_ir^2 / (lambda_r + alpha).

    Args:
        rotated: the training features, which are not standardised again without the image.
        targets: (N, S) one-hot.
        alpha: strength of the penalty.
    """
    shrunk = rotated.x / (rotated.values + alpha)  # (N, R)
    mean = targets.mean(dim=0)
    fitted = mean + shrunk @ (rotated.x.T @ (targets - mean))  # (N, S)
    leverage = 1 / len(targets) + (shrunk * rotated.x).sum(dim=1, keepdim=True)  # (N, 1)
    left_out = targets - (targets - fitted) / (1 - leverage).clamp_min(1e-6)
    return (left_out.argmax(dim=1) == targets.argmax(dim=1)).double().mean().item()


def _rotate(x: Tensor) -> Rotated:
    """Standardised features (N, D) in the basis of their principal components, from the smaller of the two Gram matrices."""
    few_features = x.shape[1] <= len(x)
    gram = x.T @ x if few_features else x @ x.T
    values, vectors = torch.linalg.eigh(gram.cpu().double())
    kept = values > len(values) * torch.finfo(x.dtype).eps * values[-1].clamp_min(1e-30)
    values, vectors = values[kept].to(x), vectors[:, kept].to(x)
    if few_features:
        return Rotated(vectors, values, x @ vectors)
    return Rotated(x.T @ (vectors / values.sqrt()), values, vectors * values.sqrt())


class RidgeProbe(LabelledEvaluator):
    """The accuracy of ridge regression on frozen features, as "ridge"; see ``ridge_classification``.

    Args:
        train, test: labelled images, anything that ``open_images`` takes.
        alpha: strength of the penalty; None chooses it by leaving one out.
        options: of ``LabelledEvaluator``.
    """

    name = "ridge"

    def __init__(self, train: Any, test: Any, alpha: float | None = None, **options: Any) -> None:
        super().__init__(train, test, **options)
        if alpha is not None:
            require_positive("alpha", alpha, "is the strength of the penalty")
        self.alpha = alpha

    def classify(self, train: Features, test: Features, device: torch.device | None) -> Classification:
        """Ridge regression; see ``ridge_classification``."""
        return ridge_classification(train, test, self.alpha, device)
