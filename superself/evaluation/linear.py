"""Linear probe: the accuracy of a linear classifier on frozen features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from threadpoolctl import threadpool_limits

from superself.evaluation.extraction import Features, classified

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

REGULARISATIONS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TOLERANCE = (
    1e-3  # of the gradient; 1e-4 takes three times as long on real features and changes accuracy by less than 1 %
)


def linear_accuracy(train: Features, test: Features, C: float | None = None, seed: int = 0) -> float:
    """The fraction of test images that logistic regression on the features classifies correctly.

    Each feature is standardised with the mean and standard deviation of the training set (a constant one becomes 0).
    scikit-learn then fits multinomial logistic regression with an L2 penalty to all training images, by L-BFGS until no
    gradient exceeds 1e-3. Rows of unreadable images are left out.

    Args:
        C: inverse strength of the penalty; None: ``choose_regularisation``.
        seed: decides which images choose C.
    Raises:
        ValueError: if one of the two has no class labels (N,), or the training images are of fewer than two classes.
    """
    train, test = classified(train, "train"), classified(test, "test")
    C = choose_regularisation(train, seed) if C is None else C
    return _fit(train, C).score(test.features.numpy(), test.labels.numpy())


def choose_regularisation(train: Features, seed: int = 0) -> float:
    """The C of ``REGULARISATIONS`` that is best on a fifth of each class when fitted to the rest; the smallest if tied.

    Raises:
        ValueError: if the training images are of fewer than two classes, or no class has two images.
    """
    train = classified(train, "train")
    chosen = torch.zeros(len(train), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for label in train.labels.unique():
        members = (train.labels == label).nonzero().flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        chosen[shuffled[: (len(members) + 3) // 5]] = True  # a fifth, at least one; but none of a single image
    if not chosen.any():
        raise ValueError(
            f"the {len(chosen)} training images are all of different classes, so none can be held out to choose C; "
            "give at least two images of a class, or pass C to linear_accuracy()."
        )
    fitted = Features(train.features[~chosen], train.labels[~chosen])
    held_out = Features(train.features[chosen], train.labels[chosen])
    return max(REGULARISATIONS, key=lambda C: linear_accuracy(fitted, held_out, C))


def _fit(train: Features, C: float) -> Pipeline:
    classes = train.labels.unique().tolist()
    if len(classes) < 2:
        raise ValueError(
            f"the training images have the labels {classes}, and a linear probe needs at least 2 classes; "
            "give training images of all classes."
        )
    from sklearn.linear_model import LogisticRegression  # scikit-learn takes a second to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=C, tol=TOLERANCE, max_iter=1000))
    with threadpool_limits(1):  # more threads are slower, and the result would depend on their number
        return classifier.fit(train.features.numpy(), train.labels.numpy())
