"""How long the measures with labels take, next to scikit-learn.

    python -m bench.probes [--images 50000] [--test 10000] [--width 512] [--classes 10] [--measures knn,linear,...] [--no-peer]

The features are drawn: a Gaussian for each class, all with the same covariance, whose eigenvalues fall as 1 / rank^2 down to a
floor, turned at random, and negative values set to 0. Real features are correlated in this way; the accuracies say only whether
two implementations agree, and nothing about what a network has learnt. Times are of one call each. scikit-learn follows the same
protocol: the same penalties tried on a fifth of the training images, the same draws, its own solvers with the tolerances
that superself used when it called scikit-learn.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from bench.report import append, command, listed, machine, pick_device, section, table
from superself.evaluation import (
    Features,
    centroid_classification,
    knn_classification,
    label_fractions,
    linear_classification,
    ridge_classification,
    svm_classification,
)
from superself.evaluation.fractions import FEW, draw_labels
from superself.evaluation.linear import REGULARISATIONS, hold_out_a_fifth
from superself.evaluation.ridge import PENALTIES
from superself.evaluation.solver import Scale
from superself.evaluation.svm import STRENGTHS

FRACTIONS, REPEATS = (0.01, 0.1, 1.0), 5
PROMISED = ("knn", "linear", "fractions")  # together within a minute on two cores
HEAD = ("measure", "seconds", "peak, MiB", "scikit-learn, s", "times faster", "accuracy, %", "scikit-learn, %")


def make_features(images: int, test: int, width: int, classes: int, seed: int = 0) -> tuple[Features, Features]:
    """Training and test features; see the top of the file."""
    generator = torch.Generator().manual_seed(seed)
    deviations = 1 / torch.arange(1, width + 1).float() + 0.02  # (D,)
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    means = 0.35 * deviations * torch.randn(classes, width, generator=generator)  # (K, D)
    parts = []
    for count in (images, test):
        labels = torch.randint(classes, (count,), generator=generator)
        x = torch.randn(count, width, generator=generator).mul_(deviations).add_(means[labels])
        parts.append(Features((x @ turn).add_(0.02).relu_(), labels))
    return parts[0], parts[1]


def ours(measure: str, train: Features, test: Features, device: torch.device) -> float:
    """The accuracy by superself."""
    where = None if device.type == "cpu" else device
    if measure == "fractions":
        rows = label_fractions(train, test, FRACTIONS, repeats=REPEATS, device=where).rows
        return sum(row.mean for row in rows) / len(rows)
    classify: dict[str, Callable[..., Any]] = {
        "knn": knn_classification,
        "linear": linear_classification,
        "svm": svm_classification,
        "centroid": lambda *parts, device: centroid_classification(*parts, "euclidean", device),
        "ridge": ridge_classification,
    }
    return classify[measure](train, test, device=where).top1


def peer(measure: str, train: Features, test: Features) -> float:
    """The accuracy by scikit-learn."""
    import numpy as np
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

    if measure == "fractions":
        means = []
        for fraction in FRACTIONS:
            draws = range(REPEATS if fraction != 1 else 1)
            drawn = [train.rows(draw_labels(train.labels, fraction, None, 0, repeat)) for repeat in draws]
            found = [_linear_peer(part, test, "linear", repeat, train) for repeat, part in enumerate(drawn)]
            means.append(sum(found) / len(found))
        return sum(means) / len(means)
    if measure in ("linear", "svm"):
        return _linear_peer(train, test, measure, 0, train)
    if measure == "knn":
        model = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.1))
    elif measure == "centroid":
        model = NearestCentroid()
    else:
        model = RidgeClassifierCV([len(train) * penalty for penalty in PENALTIES])
    x, y = train.features, test.features
    if measure == "ridge":
        scale = Scale.of(x)
        x, y = scale(x), scale(y)
    return model.fit(x.numpy(), train.labels.numpy()).score(y.numpy(), test.labels.numpy())


def _linear_peer(train: Features, test: Features, measure: str, seed: int, population: Features) -> float:
    """Chooses C on a fifth of the training images and fits all of them."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    def score(part: Features, asked: Features, C: float) -> float:
        scale = Scale.of(part.features, population.features)
        svm = measure == "svm"
        model = LinearSVC(C=C, dual=False) if svm else LogisticRegression(C=C, tol=1e-3, max_iter=1000)
        with threadpool_limits(1):  # as superself called it: more threads were slower
            model.fit(scale(part.features).numpy(), part.labels.numpy())
        return model.score(scale(asked.features).numpy(), asked.labels.numpy())

    if len(train.labels.unique()) == len(train):
        return score(train, test, FEW)
    chosen = hold_out_a_fifth(train.labels, seed)
    fitted, held_out = (train.rows(part.nonzero().flatten()) for part in (~chosen, chosen))
    strengths = STRENGTHS if measure == "svm" else REGULARISATIONS
    best = max(strengths, key=lambda C: score(fitted, held_out, C))
    return score(train, test, best)


def measure_all(options: argparse.Namespace, device: torch.device) -> list[list[Any]]:
    """One row per measure, all of superself before the first of scikit-learn, and a row for what is promised together."""
    train, test = make_features(options.images, options.test, options.width, options.classes)
    rows, total = [], {"superself": 0.0, "scikit-learn": 0.0}
    for measure in options.measures:
        began = time.perf_counter()
        accuracy = ours(measure, train, test, device)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        rows.append([measure, seconds, f"{peak:,.0f}", None, None, 100 * accuracy, None])
        total["superself"] += seconds if measure in PROMISED else 0
        print(f"{measure}: {seconds:.2f} s", flush=True)
    for row in rows if options.peer else ():
        began = time.perf_counter()
        row[6] = 100 * peer(row[0], train, test)
        row[3] = time.perf_counter() - began
        row[4] = row[3] / row[1]
        total["scikit-learn"] += row[3] if row[0] in PROMISED else 0
        print(f"{row[0]}: {row[3]:.2f} s by scikit-learn", flush=True)
    if set(PROMISED) <= set(options.measures):
        both = total["scikit-learn"], total["scikit-learn"] / total["superself"]
        rows.append(
            [" + ".join(PROMISED), total["superself"], None, *(both if options.peer else (None, None)), None, None]
        )
    return rows


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measures = ["knn", "linear", "fractions", "centroid", "ridge", "svm"]
    parser.add_argument("--images", type=int, default=50_000, help="training images")
    parser.add_argument("--test", type=int, default=10_000, help="test images")
    parser.add_argument("--width", type=int, default=512, help="features of an image")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--measures", type=listed(str), default=measures)
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="without scikit-learn")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--write", action="store_true", help="append the table to bench/RESULTS.md")
    options = parser.parse_args(arguments)
    if unknown := set(options.measures) - set(measures):
        parser.error(f"{', '.join(sorted(unknown))} is unknown; pass some of {', '.join(measures)}.")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints, and with ``--write`` appends to RESULTS.md."""
    options = parse(arguments)
    device = pick_device(options.device)
    began = machine(device)
    print(began)
    text = table(HEAD, measure_all(options, device))
    print("\n" + text)
    if options.write:
        title = f"measures with labels, {options.images:,} x {options.width} features"
        append(section(title, device, command("bench.probes", arguments), began, [text]))


if __name__ == "__main__":
    main()
