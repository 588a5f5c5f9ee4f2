"""Weighted nearest-neighbour classification: the quality of features without training anything on them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from superself.evaluation.extraction import Features, classified

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
