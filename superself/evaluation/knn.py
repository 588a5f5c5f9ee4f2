"""Weighted nearest-neighbour classification: the quality of features without training anything on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from superself.evaluation.evaluator import Evaluator
from superself.evaluation.extraction import Features, classified, open_labelled
from superself.evaluation.subject import Subject

SIMILARITIES_AT_A_TIME = 2**25  # float32: 128 MiB


def knn_predict(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, k: int = 20, temperature: float = 0.1
) -> Tensor:
    """The class that the ``k`` most similar training images vote for, each with weight exp(similarity / temperature).

    Similarity is the cosine. Test images are processed in chunks, so memory grows with N and not with N x M. Ties go to
    the smallest label.

    Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, arXiv:1805.01978.
    Deviations: the defaults are k=20 and temperature=0.1; the paper has 200 and 0.07.
    Args:
        k: neighbours that vote.
        temperature: divides the similarities before the exponential; smaller lets the nearest ones decide.
    Shape:
        train_features (N, D), train_labels (N,), test_features (M, D) -> labels (M,).
    Raises:
        ValueError: if k is not between 1 and N, or the temperature is not positive.
    """
    images = len(train_features)
    if not 1 <= k <= images:
        raise ValueError(f"k must be between 1 and the number of training images ({images}), got {k}.")
    if temperature <= 0:
        raise ValueError(f"temperature must be a number above 0, got {temperature} (it divides similarities).")
    classes, train_labels = train_labels.unique(return_inverse=True)  # sorted classes, and the place of each label
    train_features = F.normalize(train_features.float(), dim=1)
    predictions = []
    for chunk in test_features.split(max(1, SIMILARITIES_AT_A_TIME // images)):
        similarity = F.normalize(chunk.float(), dim=1) @ train_features.T  # (m, N)
        nearest, index = similarity.topk(k)  # (m, k)
        # Relative to the nearest neighbour: the same winner, and no overflow at small temperatures.
        weight = ((nearest - nearest[:, :1]) / temperature).exp()
        votes = torch.zeros(len(chunk), len(classes), device=weight.device)
        votes.scatter_add_(1, train_labels[index], weight)  # (m, classes)
        predictions.append(classes[votes.argmax(dim=1)])
    return torch.cat(predictions)


def knn_accuracy(train: Features, test: Features, k: int = 20, temperature: float = 0.1) -> float:
    """The fraction of test images that ``knn_predict`` classifies correctly; rows of unreadable images are left out.

    Raises:
        ValueError: if one of the two has no class labels (N,), or k or the temperature is out of range.
    """
    train, test = classified(train, "train"), classified(test, "test")
    predictions = knn_predict(train.features, train.labels, test.features, k, temperature)
    return (predictions == test.labels).float().mean().item()


class KNN(Evaluator):
    """Top-1 accuracy of ``knn_predict``; "knn".

    Args:
        train: labelled images, the neighbours.
        test: labelled images of the same classes.
        k: neighbours that vote; all of ``train`` if it has fewer images.
        temperature: of their votes.
        every: epochs from one measurement to the next.
    """

    name = "knn"

    def __init__(self, train: Any, test: Any, k: int = 20, temperature: float = 0.1, every: int = 1) -> None:
        super().__init__(every)
        self.train, self.test, self.k, self.temperature = train, test, k, temperature

    def open(self, subject: Subject) -> None:
        self._parts = [open_labelled(subject.open(part), None, role) for part, role in self._roles()]

    def evaluate(self, subject: Subject) -> dict[str, float]:
        known, asked = (subject.features(images) for images in self._parts)
        k = min(self.k, len(known.readable()))
        weight = f"exp(similarity / {self.temperature:g})"
        self.protocol = f"kNN: vote of the {k} most similar training images (cosine), weighted {weight}."
        return {"knn": knn_accuracy(known, asked, k, self.temperature)}

    def _roles(self) -> list[tuple[Any, str]]:
        return [(self.train, "train"), (self.test, "test")]
