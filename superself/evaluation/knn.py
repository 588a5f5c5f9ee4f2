"""Weighted nearest-neighbour classification: the quality of features without training anything on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from superself.basics.validate import require_count, require_positive
from superself.data import Images
from superself.evaluation.classification import Classification, match_classes
from superself.evaluation.extraction import Features
from superself.evaluation.labelled import LabelledEvaluator

SIMILARITIES_AT_A_TIME = 2**25  # float32: 128 MiB
GROUP = 64  # similarities of which the largest is found first


def knn_scores(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    k: int = 20,
    temperature: float = 0.1,
    classes: int | None = None,
) -> Tensor:
    """The share of the vote that each class gets from the ``k`` most similar training images.

    Each votes with weight exp(similarity / temperature), and similarity is the cosine. Test images are processed in chunks,
    so memory grows with N and not with N x M: about 150 MiB more than the features.

    Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, arXiv:1805.01978.
    Deviations: the defaults are k=20 and temperature=0.1; the paper has 200 and 0.07.
    Args:
        train_labels: from 0 to K - 1.
        k: neighbours that vote.
        temperature: divides the similarities before the exponential; smaller lets the nearest ones decide.
        classes: K; None: the largest label + 1.
    Shape:
        train_features (N, D), train_labels (N,), test_features (M, D) -> scores (M, K), each row with sum 1.
    Raises:
        ValueError: if k is not between 1 and N, or the temperature is not positive.
    """
    images = len(train_features)
    if not 1 <= k <= images:
        raise ValueError(f"k must be between 1 and the number of training images ({images}), got {k}.")
    if temperature <= 0:
        raise ValueError(f"temperature must be a number above 0, got {temperature} (it divides similarities).")
    classes = int(train_labels.max()) + 1 if classes is None else classes
    train_features = F.normalize(train_features.float(), dim=1)
    shares = []
    for chunk in test_features.split(max(1, SIMILARITIES_AT_A_TIME // images)):
        similarity = F.normalize(chunk.float(), dim=1) @ train_features.T  # (m, N)
        nearest, index = _largest(similarity, k)  # (m, k)
        # Relative to the nearest neighbour: the same shares, and no overflow at small temperatures.
        weight = ((nearest - nearest[:, :1]) / temperature).exp()
        votes = torch.zeros(len(chunk), classes, device=weight.device)
        votes.scatter_add_(1, train_labels[index], weight)  # (m, K)
        shares.append(votes / votes.sum(dim=1, keepdim=True))
    return torch.cat(shares)


def knn_predict(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, k: int = 20, temperature: float = 0.1
) -> Tensor:
    """The class with the largest share of the vote in ``knn_scores``; ties go to the smallest label.

    Args:
        train_labels: any integers.
        k: neighbours that vote.
        temperature: of their votes.
    Shape:
        train_features (N, D), train_labels (N,), test_features (M, D) -> labels (M,).
    Raises:
        ValueError: if k is not between 1 and N, or the temperature is not positive.
    """
    classes, places = train_labels.unique(return_inverse=True)  # sorted classes, and the place of each label
    return classes[knn_scores(train_features, places, test_features, k, temperature).argmax(dim=1)]


def knn_accuracy(train: Features, test: Features, k: int = 20, temperature: float = 0.1) -> float:
    """The fraction of test images that ``knn_predict`` classifies correctly; rows of unreadable images are left out.

    Raises:
        ValueError: if one of the two has no class labels (N,), or k or the temperature is out of range.
    """
    return knn_classification(train, test, k, temperature).top1


def knn_classification(
    train: Features, test: Features, k: int = 20, temperature: float = 0.1, device: torch.device | None = None
) -> Classification:
    """Classifies test images by the vote of the most similar training images; see ``knn_scores``.

    Rows of unreadable images are left out.

    Args:
        k: neighbours that vote.
        temperature: of their votes.
        device: where to compute; None: where the features are.
    Raises:
        ValueError: if one of the two has no class labels (N,), or k or the temperature is out of range.
    """
    task = match_classes(train, test, device)
    scores = knn_scores(task.train, task.labels, task.test, k, temperature)
    protocol = (
        f"kNN: vote of the {k} training images with the most similar features (cosine), weighted "
        f"exp(similarity / {temperature:g}); {task.described}."
    )
    return task.result(scores, protocol)


def _largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row (m, N) in falling order, with their columns.

    They lie in the k groups with the largest maxima, which are found first: on a CPU, sorting all N takes longer than the
    matrix product that made them.
    """
    images = values.shape[1]
    groups = images // GROUP
    if values.device.type != "cpu" or groups < 4 * k:
        return values.topk(k, dim=1)
    grouped = values[:, : groups * GROUP].view(len(values), groups, GROUP)
    chosen = grouped.amax(dim=2).topk(k, dim=1, sorted=False).indices  # (m, k) groups
    columns = (chosen[:, :, None] * GROUP + torch.arange(GROUP)).flatten(1)  # (m, k * GROUP)
    rest = torch.arange(groups * GROUP, images).expand(len(values), -1)
    columns = torch.cat([columns, rest], dim=1)
    found = values.gather(1, columns).topk(k, dim=1)
    return found.values, columns.gather(1, found.indices)


class KNN(LabelledEvaluator):
    """The accuracy of weighted nearest neighbours, as "knn"; see ``knn_classification``.

    Args:
        train, test: labelled images, anything that ``open_images`` takes.
        k: neighbours that vote.
        temperature: of their votes.
        options: of ``LabelledEvaluator``.
    """

    name = "knn"

    def __init__(self, train: Any, test: Any, k: int = 20, temperature: float = 0.1, **options: Any) -> None:
        super().__init__(train, test, **options)
        require_count("k", k, "is the number of neighbours that vote")
        require_positive("temperature", temperature, "divides similarities")
        self.k, self.temperature = k, temperature

    def check(self, train: Images) -> None:
        """Checks that there are enough training images."""
        super().check(train)
        if self.k > len(train):
            raise ValueError(f"k={self.k} neighbours of {len(train)} training images; pass k <= {len(train)}.")

    def classify(self, train: Features, test: Features, device: torch.device | None) -> Classification:
        """The vote of the neighbours; see ``knn_classification``."""
        return knn_classification(train, test, self.k, self.temperature, device)
