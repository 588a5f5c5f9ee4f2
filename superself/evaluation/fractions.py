"""Label fractions and k-shot: how accurate a classifier on frozen features is with few labels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from superself.basics.validate import require_choice, require_count, require_fraction
from superself.evaluation.centroid import centroid_classification
from superself.evaluation.classification import Classification
from superself.evaluation.extraction import Features, classified
from superself.evaluation.knn import knn_classification
from superself.evaluation.labelled import LabelledEvaluator, accelerator_of
from superself.evaluation.linear import linear_classification
from superself.evaluation.ridge import ridge_classification
from superself.evaluation.subject import Subject
from superself.evaluation.svm import svm_classification

Classifier = Callable[..., Classification]
CLASSIFIERS: dict[str, Classifier] = {
    "centroid": centroid_classification,
    "knn": knn_classification,
    "linear": linear_classification,
    "ridge": ridge_classification,
    "svm": svm_classification,
}
FEW = 1e-2  # C of linear classifiers where no class has two images to choose it on


@dataclass(frozen=True)
class FractionRow:
    """The accuracies with one fraction of the labels, or one number of images per class.

    Args:
        name: "1%" or "5-shot".
        key: "at_0.01" or "shots_5".
        images: training images in a draw.
        accuracies: one per draw.
    """

    name: str
    key: str
    images: int
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the draws."""
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float:
        """Standard deviation over the draws; NaN for one draw."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else math.nan

    def confidence_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Bounds of the mean over all draws, by Student's t: mean ± t std / sqrt(draws); NaN for one draw.

        It is about the choice of training images; the test images count as fixed.
        """
        from scipy.special import stdtrit

        draws = len(self.accuracies)
        reach = float(stdtrit(max(1, draws - 1), (1 + level) / 2)) * self.std / math.sqrt(draws)
        return self.mean - reach, self.mean + reach


@dataclass(frozen=True)
class FractionTable:
    """Result of ``label_fractions``; printing it shows the table.

    Args:
        rows: one per fraction, then one per number of images per class.
        protocol: how the images were drawn, and what was fitted to them.
    """

    rows: tuple[FractionRow, ...]
    protocol: str

    def __getitem__(self, name: str) -> FractionRow:
        """The row with this name, "1%" or "5-shot"."""
        found = {row.name: row for row in self.rows}
        if name not in found:
            raise KeyError(f"there is no row {name!r}; the rows are {', '.join(found)}.")
        return found[name]

    def __str__(self) -> str:
        lines = [f"{'labels':<10}{'images':>8}{'draws':>7}{'accuracy':>10}{'std':>8}  95 % interval"]
        for row in self.rows:
            low, high = row.confidence_interval()
            spread = f"{'-':>8}  -" if math.isnan(row.std) else f"{row.std:>8.1%}  {low:.1%} to {high:.1%}"
            lines.append(f"{row.name:<10}{row.images:>8}{len(row.accuracies):>7}{row.mean:>10.1%}{spread}")
        return "\n".join([*lines, self.protocol])


def label_fractions(
    train: Features,
    test: Features,
    fractions: Sequence[float] = (0.01, 0.1, 1.0),
    shots: Sequence[int] = (),
    repeats: int = 5,
    how: str | Classifier = "linear",
    seed: int = 0,
    device: torch.device | None = None,
) -> FractionTable:
    """The accuracy with a part of the labels: the mean over several draws, with its deviation and a confidence interval.

    Draws are stratified: of each class its fraction, rounded, but at least one image. They depend on the labels, their order
    and the seed only, so that all backbones and classifiers get the same ones, and each draw contains the smaller draws
    of the same repetition. All labels are measured once, since there is only one draw. Rows of unreadable images are
    left out.

    Linear, SVM and ridge classifiers divide features by their standard deviations over all training images, which takes no
    labels: those of a few images are poor. Linear classifiers choose C on a fifth of each draw; with one image per class it is
    0.01. kNN has at most as many neighbours as the draw has images.

    Args:
        fractions: of the training images, above 0, up to 1.
        shots: numbers of images per class; a class with fewer gives all of them.
        repeats: draws for each.
        how: "linear", "knn", "svm", "centroid", "ridge", or a function of (train, test) that returns a Classification.
        seed: of the draws.
        device: where to compute; None: where the features are.
    Raises:
        ValueError: if an argument is out of range, or one of the two has no class labels (N,).
    """
    wanted = check_fractions(fractions, shots, repeats, how)
    train, test = classified(train, "train"), classified(test, "test")
    rows = []
    for fraction, shot in wanted:
        accuracies, places = [], torch.empty(0)
        for repeat in range(repeats if fraction != 1 else 1):
            places = draw_labels(train.labels, fraction, shot, seed, repeat)
            accuracies.append(_classify(train.rows(places), test, how, repeat + seed, device, train).top1)
        name, key = (
            (f"{shot}-shot", f"shots_{shot}") if fraction is None else (f"{100 * fraction:g}%", f"at_{fraction:g}")
        )
        rows.append(FractionRow(name, key, len(places), tuple(accuracies)))
    called = how if isinstance(how, str) else getattr(how, "__name__", type(how).__name__)
    protocol = (
        f"{called}, {len(test)} test images, parts of the training images drawn {repeats} times (seed {seed}): of each class its "
        "fraction, but at least one image."
    )
    return FractionTable(tuple(rows), protocol)


def draw_labels(labels: Tensor, fraction: float | None, shots: int | None, seed: int, repeat: int) -> Tensor:
    """The places of the images in a draw, in rising order; see ``label_fractions``.

    Args:
        labels: (N,) classes.
        fraction: of each class; None for ``shots`` images of each.
        shots: images of each class.
        seed: of all draws.
        repeat: number of the draw.
    """
    generator = torch.Generator().manual_seed(1_000_003 * repeat + seed)
    chosen = []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        count = shots if fraction is None else max(1, int(fraction * len(members) + 0.5))
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


def check_fractions(
    fractions: Sequence[float], shots: Sequence[int], repeats: int, how: str | Classifier
) -> list[tuple[float | None, int | None]]:
    """The (fraction, shots) to measure, one of the two None in each.

    Raises:
        ValueError: if one is out of range, or there are none.
    """
    require_count("repeats", repeats, "is the number of draws")
    if not callable(how):
        require_choice("how", how, CLASSIFIERS)
    for fraction in fractions:
        require_fraction("a fraction", fraction, "is the part of the labels that is used", lower_open=True)
    for count in shots:
        require_count("shots", count, "is the number of images of each class")
    wanted = [(fraction, None) for fraction in fractions] + [(None, count) for count in shots]
    if not wanted:
        raise ValueError("there are neither fractions nor shots; pass for example fractions=(0.01, 0.1, 1.0).")
    return wanted


def _classify(
    train: Features, test: Features, how: str | Classifier, seed: int, device: torch.device | None, everything: Features
) -> Classification:
    if callable(how):
        return how(train, test)
    options: dict[str, Any] = {"device": device}
    if how in ("linear", "svm", "ridge") and len(train) < len(everything):
        options["population"] = everything
    if how == "knn":
        options["k"] = min(20, len(train))
    elif how in ("linear", "svm"):
        options["seed"] = seed
        if len(train.labels.unique()) == len(train):
            options["C"] = FEW
    return CLASSIFIERS[how](train, test, **options)


class LabelFractions(LabelledEvaluator):
    """The accuracy with a part of the labels, as "linear_at_0.01" or "linear_shots_5"; see ``label_fractions``.

    The values are means over the draws; the whole ``FractionTable`` of the last measurement is in ``table``.

    Args:
        train, test: labelled images, anything that ``open_images`` takes.
        fractions: of the training images.
        shots: numbers of images per class.
        repeats: draws for each.
        how: "linear", "knn", "svm", "centroid" or "ridge".
        seed: of the draws.
        pool: "mean", or "flatten" for the features at each place.
        every: epochs from one measurement to the next.
    """

    name = "fractions"

    def __init__(
        self,
        train: Any,
        test: Any,
        fractions: Sequence[float] = (0.01, 0.1, 1.0),
        shots: Sequence[int] = (),
        repeats: int = 5,
        how: str = "linear",
        seed: int = 0,
        *,
        pool: str = "mean",
        every: int = 1,
    ) -> None:
        super().__init__(train, test, pool=pool, every=every)
        check_fractions(fractions, shots, repeats, how)
        self.options = {"fractions": fractions, "shots": shots, "repeats": repeats, "how": how, "seed": seed}
        self.table: FractionTable | None = None

    def evaluate(self, subject: Subject) -> dict[str, float]:
        """The mean accuracy for each fraction and number of shots."""
        self.table = label_fractions(*self.features(subject), **self.options, device=accelerator_of(subject))
        self.protocol = self.table.protocol
        how = self.options["how"]
        called = how if isinstance(how, str) else getattr(how, "__name__", "custom")
        return {f"{called}_{row.key}": row.mean for row in self.table.rows}
