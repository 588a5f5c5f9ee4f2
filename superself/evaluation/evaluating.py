"""Evaluating a backbone: several evaluators on one subject, next to the same network with random weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from superself.basics.random import preserve_random_state
from superself.data import Images
from superself.evaluation.alignment import Alignment
from superself.evaluation.centroid import NearestCentroid
from superself.evaluation.evaluator import Evaluator
from superself.evaluation.extraction import NonFiniteFeatures
from superself.evaluation.knn import KNN
from superself.evaluation.linear import LinearProbe
from superself.evaluation.spectrum import Spectrum
from superself.evaluation.subject import Subject
from superself.evaluation.twin import random_twin
from superself.networks.modes import evaluation_mode
from superself.training.metrics import in_units

RANDOM, TRAINED = "random initialised", "trained"  # the rows of an evaluation


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What evaluators measured; printing it shows a table with the protocol of each evaluator.

    Args:
        rows: values by their names, of "random initialised" (if the network can be initialised again) and "trained".
        protocol: sentences on how the values were measured.
        figures: the pictures that were written, by the names of the evaluators.
    """

    rows: dict[str, dict[str, float]]
    protocol: list[str] = field(default_factory=list)
    figures: dict[str, Path] = field(default_factory=dict)

    @property
    def gain(self) -> dict[str, float]:
        """Trained minus random initialised, of each value that both have."""
        random = self.rows.get(RANDOM, {})
        return {name: value - random[name] for name, value in self.rows[TRAINED].items() if name in random}

    def __str__(self) -> str:
        columns = [*self.rows, "gain"] if RANDOM in self.rows else [*self.rows]
        width = max(len("measure"), *map(len, self.rows[TRAINED])) + 2
        lines = [f"{'measure':<{width}}" + "".join(f"{column:>20}" for column in columns)]
        for name in self.rows[TRAINED]:
            cells = [in_units(name, row[name]) if name in row else "-" for row in self.rows.values()]
            if len(columns) > len(cells):
                cells.append(in_units(name, self.gain[name], signed=True) if name in self.gain else "-")
            lines.append(f"{name:<{width}}" + "".join(f"{cell:>20}" for cell in cells))
        return "\n".join([*lines, *self.protocol])

    def __repr__(self) -> str:
        """The table, so that a notebook shows it."""
        return str(self)


def evaluate(
    backbone: nn.Module | Subject,
    train: Any = None,
    test: Any = None,
    evaluators: Sequence[Evaluator] | None = None,
    *,
    seed: int = 0,
    figures: str | Path | None = None,
) -> Evaluation:
    """Measures a backbone next to the same network with random weights; the same call gives the same numbers.

    Without ``evaluators``: those of ``default_evaluators``. The batch norms of the random network get the statistics of
    ``train``, or of the subject's images. It is left out if its layers cannot be initialised again, and its values where an
    evaluator needs the method (as a loss on held-out images does).

    Args:
        backbone: any module from images to features, or a Subject.
        train: labelled images for the default evaluators, which fit to them; needs ``test``.
        test: labelled images of the same classes, on which they measure.
        evaluators: what to measure; next to the default evaluators with labels if ``train`` and ``test`` are given.
        seed: of the random network and of what evaluators draw.
        figures: a folder, in which each evaluator that has a picture writes NAME.png.
    Raises:
        ValueError: if only one of ``train`` and ``test`` is given, there is nothing to measure, or an evaluator lacks
            something (its message begins with the evaluator's name).
        TypeError: if ``evaluators`` are not evaluators.
    """
    if (train is None) != (test is None):
        missing = "test" if test is None else "train"
        raise ValueError(f"{missing}= is missing: pass labelled images for both train= and test=, or neither of them.")
    subject = backbone if isinstance(backbone, Subject) else Subject(backbone, seed=seed)
    chosen = [] if evaluators is None else check_evaluators(evaluators)
    if evaluators is None or train is not None:
        chosen = [*default_evaluators(subject, train, test), *chosen]
    panel, pictures = Panel(chosen), {}
    with evaluation_mode(subject.backbone):
        panel.open(subject)
        trained, protocol = panel.measure(subject), panel.protocol()
        if figures is not None:
            made = {label: panel.draw(label, subject, Path(figures) / f"{label}.png") for label in panel.evaluators}
            pictures = {label: path for label, path in made.items() if path is not None}
        subject.forget()
        random, origin = _random_row(panel, subject, None if train is None else subject.open(train), seed)
    rows = {TRAINED: trained} if random is None else {RANDOM: random, TRAINED: trained}
    return Evaluation(rows, [*protocol, f"{RANDOM}: {origin}."], pictures)


def default_evaluators(subject: Subject, train: Any = None, test: Any = None) -> list[Evaluator]:
    """What is measured unless asked otherwise: with labelled images accuracies, without any the features' spectrum.

    Raises:
        ValueError: if there are neither labels nor images.
    """
    if train is not None:
        return [KNN(train, test), LinearProbe(train, test), NearestCentroid(train, test)]
    if subject.images is None:
        raise ValueError(
            "there are no images to evaluate the backbone on; pass labelled ones as train= and test=, or evaluators=."
        )
    return [Spectrum(), *([Alignment()] if subject.views is not None else [])]


def check_evaluators(evaluators: Any) -> list[Evaluator]:
    """The evaluators as a list.

    Raises:
        TypeError: if they are not instances of Evaluator.
    """
    found = list(evaluators) if isinstance(evaluators, (list, tuple)) else None
    wrong = [e for e in (found if found is not None else [evaluators]) if not isinstance(e, Evaluator)]
    if found is None or wrong:
        given = repr(wrong[0]) if wrong else f"a {type(evaluators).__name__}"
        raise TypeError(
            f"evaluators has {given}; pass a list of instances of Evaluator, evaluators=[KNN(train, test)]."
        )
    return found


class Panel:
    """Evaluators that measure one subject together.

    Each has a label: its name, with a number where several have the same ("knn", "knn_2"). Values whose names are taken by
    an evaluator before get the same number.

    Args:
        evaluators: in the order of their values.
        given: what messages call each of them; None for its label.
    """

    def __init__(self, evaluators: Iterable[Evaluator], given: Sequence[str] | None = None) -> None:
        self.evaluators: dict[str, Evaluator] = {}
        for evaluator in evaluators:
            self.evaluators[_unused(evaluator.name or type(evaluator).__name__.lower(), self.evaluators)] = evaluator
        self.given = dict(zip(self.evaluators, given or self.evaluators, strict=True))
        self.names: dict[str, list[str]] = {}  # of each evaluator's values, the main one first; known once it measured

    def open(self, subject: Subject) -> None:
        """Opens all data sets and checks what is needed; the message of an error begins with the evaluator."""
        for label, evaluator in self.evaluators.items():
            with_label(self.given[label], evaluator.open, subject)

    def measure(self, subject: Subject, labels: Iterable[str] | None = None) -> dict[str, float]:
        """The values of the evaluators of these labels, of all by default; the first error is raised."""
        row: dict[str, float] = {}
        for label in self.evaluators if labels is None else labels:
            row |= self.values(label, subject)
        return row

    def values(self, label: str, subject: Subject) -> dict[str, float]:
        """The values of one evaluator, by names that no other of the panel uses; random states are restored."""
        with preserve_random_state(subject.seed):
            found = with_label(self.given[label], self.evaluators[label].evaluate, subject)
        if not isinstance(found, dict):
            raise TypeError(
                f"{self.given[label]}: evaluate() returned {found!r}; return a dictionary, {{name: number}}."
            )
        taken = [name for other, names in self.names.items() if other != label for name in names]
        named = {_unused(str(name), taken): float(value) for name, value in found.items()}
        self.names[label] = list(named)
        return named

    def draw(self, label: str, subject: Subject, path: Path) -> Path | None:
        """The figure of one evaluator, or None if it has none."""
        evaluator = self.evaluators[label]
        if type(evaluator).figure is Evaluator.figure:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        with preserve_random_state(subject.seed):
            return evaluator.figure(subject, path)

    def protocol(self) -> list[str]:
        """A line for each evaluator."""
        return [_protocol(label, evaluator) for label, evaluator in self.evaluators.items()]


def with_label(label: str, function: Any, subject: Subject) -> Any:
    """Calls ``function(subject)``; the message of a ValueError or TypeError begins with ``label``."""
    try:
        return function(subject)
    except NonFiniteFeatures:
        raise
    except (ValueError, TypeError) as error:
        if type(error) not in (ValueError, TypeError):
            raise
        raise type(error)(f"{label}: {error}") from error


def _protocol(label: str, evaluator: Evaluator) -> str:
    """What the evaluator, or its last ``result``, says of how it measured, or the first sentence of its docstring."""
    text = evaluator.protocol or getattr(getattr(evaluator, "result", None), "protocol", "")
    text = text or f"{label}: " + " ".join((type(evaluator).__doc__ or "").split("\n\n")[0].split())
    return text if text.endswith(".") else f"{text}."


def _unused(name: str, taken: Iterable[str]) -> str:
    """The name, with the first number from 2 on where it is taken."""
    taken, number, found = set(taken), 1, name
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    return found


def _random_row(
    panel: Panel, subject: Subject, images: Images | None, seed: int
) -> tuple[dict[str, float] | None, str]:
    """The values of the random network, and how it was made or why there is none."""
    images = next((found for found in (images, subject.images, *subject.opened) if found is not None), None)
    if images is None or subject.preprocessing is None:
        return None, "not measured, as there are no images to measure the statistics of batch norms on"
    try:
        network, origin = random_twin(subject.backbone, images, subject.preprocessing, seed)
    except ValueError as error:
        return None, f"not measured: {str(error).rstrip('.')}"
    twin, row = subject.with_backbone(network, embed=None, held_out_loss=None), {}
    panel = copy.copy(panel)  # an evaluator that keeps its last result keeps that of the trained network
    panel.evaluators = {label: copy.copy(evaluator) for label, evaluator in panel.evaluators.items()}
    for label, evaluator in panel.evaluators.items():
        try:
            evaluator.open(twin)
        except ValueError:  # it needs the method, which a random backbone does not have
            continue
        row |= panel.values(label, twin)
    return row, origin
