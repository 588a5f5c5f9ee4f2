"""Did training help? One table with the trained backbone and the same network with random weights."""

from __future__ import annotations

import builtins
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from superself.data import Preprocessing
from superself.evaluation.extraction import Features, features, open_labelled
from superself.evaluation.knn import knn_accuracy
from superself.evaluation.linear import choose_regularisation, linear_accuracy
from superself.evaluation.twin import random_twin


@dataclass(frozen=True)
class Comparison:
    """Result of ``compare``: ``rows`` by name, each with the accuracies "knn" and "linear"; ``text`` is the printed table."""

    rows: dict[str, dict[str, float]]
    text: str

    def __str__(self) -> str:
        return self.text


def compare(
    backbone: nn.Module,
    train: Any,
    test: Any,
    *,
    random: nn.Module | None = None,
    k: int = 20,
    temperature: float = 0.1,
    seed: int = 0,
    print: bool = True,
) -> Comparison:
    """Measures a trained and a randomly initialised backbone on labelled images, and prints one table.

    Both get the same images with the same preprocessing, in evaluation mode; the same call gives the same numbers. The batch
    norms of the random backbone get the statistics of training images: with their initial mean 0 and variance 1 they would
    not normalise, and training would seem to help more than it does. Unreadable images are left out.

    Args:
        backbone: the trained one, as ``get_backbone()`` returns it.
        train: labelled images: the neighbours for kNN, and the training set of the linear probe.
        test: labelled images of the same classes, on which accuracy is measured.
        random: the backbone to compare with, used without changes; None: the same network with fresh random weights, also
            where ``backbone`` started from pretrained ones.
        k: number of neighbours that vote.
        temperature: of their votes; see ``knn_predict``.
        seed: of the random weights, and of the split that chooses the linear probe's regularisation.
        print: print the table.
    Raises:
        ValueError: if a data set has no labels, ``test`` has classes that ``train`` does not have, or the backbone cannot
            be re-initialised.
    """
    preprocessing = getattr(backbone, "preprocessing", None)
    size, reading = preprocessing and preprocessing.shape[1:], preprocessing and preprocessing.reading
    train, test = open_labelled(train, size, "train", reading), open_labelled(test, size, "test", reading)
    preprocessing = preprocessing or Preprocessing.of(train)
    origin = "passed as random="
    if random is None:
        try:
            random, origin = random_twin(backbone, train, preprocessing, seed)
        except ValueError as error:
            raise ValueError(f"{error} Or pass a randomly initialised backbone as random=.") from error

    rows, chosen = {}, {}
    for name, network in {"random initialised": random, "trained": backbone}.items():
        known = features(network, train, preprocessing=preprocessing)
        asked = features(network, test, preprocessing=preprocessing)
        asked = Features(asked.features, _renumbered(asked.labels, test.classes, train.classes))
        chosen[name] = choose_regularisation(known, seed)
        rows[name] = {
            "knn": knn_accuracy(known, asked, k, temperature),
            "linear": linear_accuracy(known, asked, chosen[name]),
        }

    guess = (asked.labels == known.labels.mode().values).float().mean()
    classes = len(torch.cat([known.labels, asked.labels]).unique())
    error = 0.5 / math.sqrt(len(asked))
    protocol = [
        f"{len(known)} training and {len(asked)} test images of {classes} classes. "
        f"Majority-class accuracy: {guess:.1%}. Standard error of an accuracy: up to {error:.1%}.",
        f"kNN: vote of the {k} training images with the most similar features (cosine), "
        f"weighted exp(similarity / {temperature:g}).",
        "Linear: logistic regression on standardised features, with C chosen on a fifth of the training images "
        f"({chosen['random initialised']:g} random, {chosen['trained']:g} trained).",
        f"Random initialised: {origin}.",
    ]
    comparison = Comparison(rows, "\n".join([*_table(rows, k), *protocol, *_verdict(rows)]))
    if print:
        builtins.print(comparison)
    return comparison


def _table(rows: dict[str, dict[str, float]], k: int) -> list[str]:
    lines = [f"{'backbone':<20}{f'kNN (k={k})':>12}{'linear':>10}"]
    lines += [f"{name:<20}{row['knn']:>12.1%}{row['linear']:>10.1%}" for name, row in rows.items()]
    random, trained = rows.values()
    knn, linear = (100 * (trained[measure] - random[measure]) for measure in ("knn", "linear"))
    return [*lines, f"{'gain':<20}{knn:>+11.1f} {linear:>+9.1f}"]


def _verdict(rows: dict[str, dict[str, float]]) -> list[str]:
    random, trained = rows.values()
    return [
        f"Training did not help: the trained backbone has no higher {called} accuracy than the random one."
        for measure, called in {"knn": "kNN", "linear": "linear-probe"}.items()
        if trained[measure] <= random[measure]
    ]


def _renumbered(labels: Tensor, classes: list[str] | None, known_classes: list[str] | None) -> Tensor:
    """The labels with each class numbered as in the training set."""
    if classes is None or known_classes is None or classes == known_classes:
        return labels
    unknown = sorted(set(classes) - set(known_classes))
    if unknown:
        raise ValueError(f"test has the classes {unknown}, which train does not have; give both the same class names.")
    return torch.tensor([known_classes.index(name) for name in classes])[labels]
