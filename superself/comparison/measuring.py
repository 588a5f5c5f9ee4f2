"""What is measured of one backbone: which test images each classifier gets right, and further values."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from superself.basics.validate import require_choice, require_fraction
from superself.data import Images, Preprocessing, Reading
from superself.data.open import check_size
from superself.evaluation.class_names import renumbered
from superself.evaluation.classification import Classification
from superself.evaluation.evaluator import Evaluator
from superself.evaluation.extraction import Features, classified, features, open_labelled
from superself.evaluation.fractions import CLASSIFIERS, label_fractions
from superself.evaluation.linear import choose_regularisation
from superself.evaluation.subject import Subject
from superself.evaluation.twin import random_twin


class Splits:
    """Training and test images, opened at the size of each backbone; a size is opened once."""

    def __init__(self, train: Any, test: Any, image_size: int | tuple[int, int] | None = None) -> None:
        self.train, self.test = train, test
        self.image_size = None if image_size is None else check_size("image_size", image_size)
        self._opened: dict[Any, tuple[Images, Images]] = {}

    def at(self, preprocessing: Preprocessing | None) -> tuple[Images, Images]:
        """Both at the size and with the reading steps of a backbone; an ``Images`` keeps its own."""
        known = preprocessing and (tuple(preprocessing.shape[1:]), preprocessing.reading)
        if isinstance(self.train, Images) and isinstance(self.test, Images):
            known = None
        if known not in self._opened:
            size, reading = known or (self.image_size, None)
            self._opened[known] = tuple(
                open_labelled(given, size, role, reading)
                for given, role in ((self.train, "train"), (self.test, "test"))
            )
        return self._opened[known]

    def for_training(self, preprocessing: Preprocessing | None, options: dict[str, Any]) -> Images:
        """The training images as ``create`` opens them with ``options``, or at the size of another contestant."""
        if isinstance(self.train, Images) or not options:
            return self.at(preprocessing)[0]
        own = {name: options.get(name) for name in ("norm", "num_channels")}
        reading = Reading.of(**own, single_channel=options.get("single_channel", False))
        size = options.get("image_size", self.image_size)
        size = (size, size) if isinstance(size, int) else size
        return open_labelled(self.train, size, "train", reading)


@dataclass(frozen=True)
class Protocol:
    """How every backbone is measured.

    Args:
        how: the classifiers, "knn" and "linear".
        k: neighbours that vote.
        temperature: of their votes.
        fractions: of the labels of each class that a linear classifier gets, for further columns.
        evaluators: whose main values become further columns.
    """

    how: Sequence[str] = ("knn", "linear")
    k: int = 20
    temperature: float = 0.1
    fractions: Sequence[float] = ()
    evaluators: Sequence[Evaluator] = ()

    def __post_init__(self) -> None:
        for name in self.how:
            require_choice("how", name, tuple(CLASSIFIERS))
        if not self.how:
            raise ValueError(f"how={self.how!r} names no classifier; pass some of {', '.join(CLASSIFIERS)}.")
        for fraction in self.fractions:
            require_fraction("fractions", fraction, "is a share of the labels of each class", lower_open=True)
        for evaluator in self.evaluators:
            if not isinstance(evaluator, Evaluator):
                raise TypeError(
                    f"evaluators has {evaluator!r}, which is not an Evaluator; pass for example KNN(train, test)."
                )


@dataclass(frozen=True, eq=False)
class Measurement:
    """One backbone on one pair of data sets.

    Args:
        correct: for each classifier (N,) 1 where a test image is classified correctly, 0 where not, NaN if it is unreadable.
        values: further measures by name, such as the accuracy with few labels.
        facts: "minutes", "parameters", "peak_bytes", "images_seen", as far as they are known.
        notes: what the protocol mentions, such as the regularisation that was chosen.
    """

    correct: dict[str, Tensor]
    values: dict[str, float]
    facts: dict[str, float]
    notes: dict[str, Any]


def measure(
    backbone: nn.Module, splits: Splits, protocol: Protocol, seed: int, facts: dict[str, float] | None = None
) -> Measurement:
    """Measures a backbone; the same call gives the same numbers.

    Args:
        backbone: any module that ``features`` takes.
        splits: the labelled images.
        protocol: what is measured.
        seed: of the split that chooses the linear probe's regularisation, and of the draws of a few labels.
        facts: that are known about it.
    """
    train, test = splits.at(getattr(backbone, "preprocessing", None))
    preprocessing = getattr(backbone, "preprocessing", None) or Preprocessing.of(train)
    known = classified(features(backbone, train, preprocessing=preprocessing), "train")
    asked = features(backbone, test, preprocessing=preprocessing, on_broken="nan")
    readable = ~asked.features.isnan().all(1)  # (N,)
    labels = renumbered(asked.labels, test.classes, train.classes)
    asked = classified(Features(asked.features[readable], labels[readable]), "test")
    correct, notes = {}, {"known": known.labels, "asked": asked.labels}
    for name in protocol.how:
        found = _classify(name, known, asked, protocol, seed, notes)
        correct[name] = torch.full((len(readable),), math.nan, dtype=torch.float64)
        correct[name][readable] = (found.predictions == found.labels).double()
    values = few_label_accuracies(known, asked, protocol.fractions, seed)
    for evaluator in protocol.evaluators:
        evaluator, subject = copy.copy(evaluator), Subject(backbone, preprocessing, train, seed=seed)
        evaluator.open(subject)
        key, value = next(iter(evaluator.evaluate(subject).items()))
        values[key if key not in correct else f"{key} (evaluator)"] = value
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    return Measurement(correct, values, {"parameters": parameters, **(facts or {})}, notes)


def _classify(
    name: str, known: Features, asked: Features, protocol: Protocol, seed: int, notes: dict[str, Any]
) -> Classification:
    """What one classifier says about each test image, with classes numbered from 0; the C of the linear one is noted."""
    options: dict[str, Any] = {}
    if name == "knn":
        options = {"k": protocol.k, "temperature": protocol.temperature}
    elif name == "linear":
        options = {"C": choose_regularisation(known, seed)}
        notes["C"] = options["C"]
    return CLASSIFIERS[name](known, asked, **options)


def few_labels_key(fraction: float) -> str:
    """The name of the accuracy with a fraction of the labels: "linear@1%"."""
    return f"linear@{100 * fraction:g}%"


def few_label_accuracies(known: Features, asked: Features, fractions: Sequence[float], seed: int) -> dict[str, float]:
    """The mean accuracy of linear classifiers on a fraction of each class, over several draws; see ``label_fractions``."""
    if not fractions:
        return {}
    rows = label_fractions(known, asked, fractions, seed=seed).rows
    return {few_labels_key(fraction): row.mean for fraction, row in zip(fractions, rows, strict=True)}


def random_network(backbone: nn.Module, splits: Splits, seed: int) -> tuple[nn.Module, str]:
    """``random_twin`` with the preprocessing of the backbone, and the sentence on how it was made."""
    train, _ = splits.at(getattr(backbone, "preprocessing", None))
    preprocessing = getattr(backbone, "preprocessing", None) or Preprocessing.of(train)
    return random_twin(backbone, train, preprocessing, seed)
