"""Nearest-centroid classification: one mean per class, and no parameter to choose."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from superself.basics.validate import require_choice
from superself.evaluation.classification import Classification, match_classes
from superself.evaluation.extraction import Features
from superself.evaluation.labelled import LabelledEvaluator

METRICS = ("cosine", "euclidean")


def centroid_classification(
    train: Features, test: Features, metric: str = "cosine", device: torch.device | None = None
) -> Classification:
    """Classifies test images by the nearest class mean of the training features; rows of unreadable images are left out.

    Args:
        metric: "cosine" takes the mean of features of length 1, and the class whose mean has the largest cosine;
            "euclidean" the mean of the features as they are, and the smallest distance. Features are not standardised.
        device: where to compute; None: where the features are.
    Raises:
        ValueError: if one of the two has no class labels (N,), or the metric is unknown.
    """
    require_choice("metric", metric, METRICS)
    task = match_classes(train, test, device)
    x, y = task.train.float(), task.test.float()
    if metric == "cosine":
        x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
    centroids = x.new_zeros(len(task.seen), x.shape[1]).index_add_(0, task.labels, x)  # (S, D)
    centroids /= task.labels.bincount(minlength=len(task.seen))[:, None]
    scores = y @ F.normalize(centroids, dim=1).T if metric == "cosine" else -torch.cdist(y, centroids)  # (M, S)
    protocol = f"Nearest centroid: mean feature of each class, {metric}; {task.described}."
    return task.result(scores, protocol)


class NearestCentroid(LabelledEvaluator):
    """The accuracy of the nearest class mean, as "centroid"; see ``centroid_classification``.

    Args:
        train, test: labelled images, anything that ``open_images`` takes.
        metric: "cosine" or "euclidean".
        options: of ``LabelledEvaluator``.
    """

    name = "centroid"

    def __init__(self, train: Any, test: Any, metric: str = "cosine", **options: Any) -> None:
        super().__init__(train, test, **options)
        require_choice("metric", metric, METRICS)
        self.metric = metric

    def classify(self, train: Features, test: Features, device: torch.device | None) -> Classification:
        """The nearest mean; see ``centroid_classification``."""
        return centroid_classification(train, test, self.metric, device)
