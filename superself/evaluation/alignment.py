"""Do views of an image stay together, and do different images stay apart? Measures on the unit sphere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from superself.basics.validate import require_count, require_positive
from superself.evaluation.collapse import unit_rows
from superself.evaluation.subject import Subject
from superself.evaluation.unlabelled import UnlabelledEvaluator, view_features

ROWS = 2048  # compared with as many at once: 32 MiB of similarities in float64


def view_alignment(first: Tensor, second: Tensor, alpha: float = 2.0) -> float:
    """Mean distance, to the power of ``alpha``, of two views of the same images on the unit sphere.

    From 0 (the views of an image have the same features) to 2^alpha; about 2^(alpha / 2) for unrelated features. Computed in
    float64, a few thousand images at a time.

    Source: Wang & Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity on the
        Hypersphere, arXiv:2005.10242.
    Args:
        first: features of one view, of any length.
        second: those of the other.
        alpha: power of the distance; with 2, the result is 2 - 2 cos.
    Shape:
        (N, D), (N, D) -> number; NaN if a feature is not finite.
    Raises:
        ValueError: if the two shapes differ, there are no images, or alpha is not positive.
    """
    require_positive("alpha", alpha, "is the power of the distance")
    pairs = _paired(first, second)
    return sum(float((a - b).norm(dim=1).pow(alpha).sum()) for a, b in pairs) / len(first)


def view_cosine(first: Tensor, second: Tensor) -> float:
    """Mean cosine between two views of the same image, the positive pairs: 1 when they have the same direction.

    Shape:
        (N, D), (N, D) -> number; NaN if a feature is not finite.
    Raises:
        ValueError: if the two shapes differ, or there are no images.
    """
    return sum(float((a * b).sum()) for a, b in _paired(first, second)) / len(first)


def other_cosine(first: Tensor, second: Tensor) -> float:
    """Mean cosine between a view of an image and the other view of another image, the negative pairs.

    Over all N (N - 1) pairs, without computing them one by one.

    Shape:
        (N, D), (N, D) -> number; NaN if a feature is not finite or N < 2.
    Raises:
        ValueError: if the two shapes differ, or there are no images.
    """
    images = len(first)
    parts = [(a.sum(0), b.sum(0), (a * b).sum()) for a, b in _paired(first, second)]
    if images < 2:
        return math.nan
    total_first, total_second, own = (sum(part) for part in zip(*parts, strict=True))
    return float((total_first @ total_second - own) / (images * (images - 1)))


def feature_uniformity(features: Tensor, t: float = 2.0, most: int = 5000, seed: int = 0) -> float:
    """Logarithm of the mean Gaussian potential of all pairs of different images on the unit sphere; lower is more uniform.

    log mean exp(-t ||x - y||^2): 0 when all images have the same direction, near -2 t for random directions in many
    dimensions (-4 for t = 2), and never below -4 t. Computed in float64; memory does not depend on N, and time grows
    with the square of min(N, most).

    Source: see ``view_alignment``.
    Args:
        features: of any length.
        t: sharpness of the Gaussian.
        most: of more images than this, a fixed random part is taken; 5,000 images make 12 million pairs.
        seed: of that part.
    Shape:
        (N, D) -> number; NaN if a feature is not finite.
    Raises:
        ValueError: if there are fewer than two images, or t is not positive.
    """
    require_positive("t", t, "is the sharpness of the Gaussian")
    require_count("most", most, "is the largest number of images", minimum=2)
    if len(features) < 2:
        raise ValueError(f"uniformity compares pairs of images, and got {len(features)}; pass two or more.")
    if len(features) > most:
        generator = torch.Generator().manual_seed(seed)
        features = features[torch.randperm(len(features), generator=generator)[:most].sort().values]
    total, images, blocks = 0.0, len(features), list(unit_rows(features, ROWS))
    for place, rows in enumerate(blocks):
        for other, columns in enumerate(blocks[place:]):  # the blocks left of the diagonal are these, transposed
            potential = ((2 * rows @ columns.T - 2).clamp_(max=0) * t).exp_()  # ||x - y||^2 = 2 - 2 cos
            total += 2 * float(potential.sum()) if other else float(potential.sum() - potential.trace())
    return math.log(total / (images * (images - 1))) if math.isfinite(total) else math.nan


class Alignment(UnlabelledEvaluator):
    """Alignment, uniformity, and mean cosines of positive and negative pairs, on two random views of each image.

    "alignment" (lower: views of an image are closer together), "uniformity" (lower: images are spread more evenly; the mean
    of both views), "positives_cosine" and "negatives_cosine". Features have collapsed when alignment and uniformity are both
    near 0, so neither is good on its own.

    Args:
        dataset: anything that ``open_images`` takes; None takes the subject's own images.
        count: images, spread evenly over the data set.
        augment: what makes the views; None takes the subject's, or "simclr". To compare methods, pass the same for all.
        every: see Evaluator.
    """

    name = "alignment"
    higher_is_better: ClassVar[bool | None] = None

    def __init__(self, dataset: Any = None, count: int = 2000, augment: Any = None, every: int = 1) -> None:
        super().__init__(dataset, count, every)
        self.augment = augment

    def evaluate(self, subject: Subject) -> dict[str, float]:
        """The four values."""
        first, second = view_features(subject, self.opened(subject), 2, self.count, self.augment).unbind(1)
        return {
            "alignment": view_alignment(first, second),
            "uniformity": (feature_uniformity(first) + feature_uniformity(second)) / 2,
            "positives_cosine": view_cosine(first, second),
            "negatives_cosine": other_cosine(first, second),
        }


def _paired(first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of both at length one, a few thousand at a time."""
    if first.shape != second.shape or first.ndim != 2 or len(first) == 0:
        raise ValueError(
            f"two views of the same images are needed, (N, D) each, got {tuple(first.shape)} and {tuple(second.shape)}; "
            "pass features in the same order."
        )
    return zip(unit_rows(first, ROWS), unit_rows(second, ROWS), strict=True)
