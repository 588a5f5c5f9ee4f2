"""Whether two classifiers differ: the difference of their accuracies on the same images, with its uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The accuracy of one classifier minus that of another one, as fractions.

    Args:
        value: the difference.
        error: its standard error.
        margin: half of the width of its 95 % confidence interval.
        images: how many images both were measured on.
    """

    value: float
    error: float
    margin: float
    images: int

    @property
    def sign(self) -> int:
        """1 if the first is better, -1 if it is worse, 0 if the interval contains 0."""
        return 0 if abs(self.value) <= self.margin else 1 if self.value > 0 else -1

    def __str__(self) -> str:
        return f"{100 * self.value:+.1f} ± {100 * self.margin:.1f} points"


def paired_difference(first: Tensor, second: Tensor) -> Difference:
    """The difference of two accuracies on the same images, with the uncertainty from images and from runs.

    Of two single runs, b images are right with the first alone and c with the second alone; d = (b - c) / N, and with half an
    image added to each cell of the table of right and wrong, SE^2 = (b + c + 1 - (b - c)^2 / (N + 2)) / (N + 2)^2. The images
    that both get right or wrong say nothing about which is better, so the error is smaller than that of two separate
    samples. Of several runs of a classifier, b and c count fractions of runs, and s^2 / R is added for the variance s^2 of the
    accuracies of its R runs. That counts some of the variance twice, so the interval is rather too wide than too narrow. The
    interval is that of Student's t with the degrees of freedom of Welch and Satterthwaite: two runs say little about their
    own spread.

    Source: Agresti & Min, Simple improved confidence intervals for comparing matched proportions, Statistics in Medicine 24
    (2005), "Wald+2".
    Deviations: the interval is centred at d and not at (b - c) / (N + 2), so that it agrees with the table of accuracies.
    Shape:
        first (R, N) or (N,), second (S, N) or (N,): 1 where right, 0 where wrong, NaN where not measured.
    Raises:
        ValueError: if the numbers of images differ, or there is no image that both were measured on.
    """
    first, second = (torch.atleast_2d(part).double() for part in (first, second))
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"the two classifiers were measured on {first.shape[1]} and {second.shape[1]} images; pass results on the same ones."
        )
    both = ~(first.isnan().any(0) | second.isnan().any(0))
    count = int(both.sum())
    if not count:
        raise ValueError("no image was measured with both classifiers; pass results on the same images.")
    differences = first[:, both].mean(0) - second[:, both].mean(0)  # (n,)
    total, squares = differences.sum().item(), differences.square().sum().item()
    parts = [((squares + 1 - total**2 / (count + 2)) / (count + 2) ** 2, count + 1)]  # variance, degrees of freedom
    for runs in (first, second):
        accuracies = runs[:, both].mean(1)  # (R,)
        if len(accuracies) > 1:
            parts.append((accuracies.var().item() / len(accuracies), len(accuracies) - 1))
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    error = math.sqrt(variance)
    return Difference(total / count, error, _quantile(freedom) * error, count)


def _quantile(freedom: float) -> float:
    """The value that Student's t exceeds in either direction with the remaining probability."""
    from scipy.special import stdtrit  # comes with scikit-learn

    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))
