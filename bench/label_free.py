"""Which measure can a user without labels trust? Every label-free measure of stored runs, and its correlation with accuracy.

    python -m bench.label_free --store FOLDER --data PATH [--images 2000] [--rows FILE] [--write]

FOLDER holds NAME.pt as ``supervise(name="FOLDER/NAME")`` or ``bench.learning --store FOLDER`` leave them; PATH has train/CLASS
and test/CLASS. The measures see unlabelled training images; for those that need views all runs get the same ones, those of
SimCLR. One network with random weights for each architecture is added. Correlations are over all these networks, with intervals
of 95 % from 2,000 bootstrap samples; "within methods" is over the differences from the mean of each method with two runs or
more.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from bench.learning import open_splits, random_part
from bench.report import append, command, machine, pick_device, section, table
from superself.basics.random import preserve_random_state
from superself.data import Images
from superself.evaluation import (
    Alignment,
    Invariance,
    LiDAR,
    RotationProxy,
    Shortcuts,
    Spectrum,
    features,
    knn_accuracy,
    linear_accuracy,
)
from superself.evaluation.evaluator import Evaluator
from superself.evaluation.subject import Subject
from superself.loading import open_backbone
from superself.networks import describe, fresh_copy
from superself.networks.batch_norm import batch_norms
from superself.networks.modes import device_of, evaluation_mode

VIEWS = "simclr"  # of all runs, whatever they were trained on
ACCURACIES = ("linear", "knn")
# Shown of what the evaluators return; the distance of alpha-ReQ from 1 is added, since the paper wants it to be 1.
MEASURES = (
    *("alignment", "uniformity", "positives_cosine", "negatives_cosine", "cosine_gap"),
    *("rankme", "alpha_req", "alpha_req_from_1", "std_share", "lidar"),
    *("rotation", "invariance", "invariance_grey", "invariance_blur", "invariance_zoom", "shortcut_low_pass"),
)
BOOTSTRAPS = 2000
FEWEST = 4  # networks that a correlation is worth anything for
RANDOM = "random"


def evaluators(count: int) -> list[Evaluator]:
    """Every measure without labels, on up to ``count`` images; those with many passes take fewer."""
    return [
        Spectrum(),
        Alignment(count=count // 2, augment=VIEWS),
        LiDAR(count=count // 6, views=10, augment=VIEWS),
        RotationProxy(count=count // 2),
        Invariance(count=max(2, count // 30)),
        Shortcuts(count=count // 4),
    ]


def measured(backbone: nn.Module, images: Images, count: int) -> dict[str, float]:
    """The values of ``MEASURES``, of unlabelled images."""
    subject = Subject(backbone, images=images)
    found: dict[str, float] = {}
    for evaluator in evaluators(count):
        evaluator.open(subject)
        found |= evaluator.evaluate(subject)
    found["alpha_req_from_1"] = abs(found["alpha_req"] - 1)
    found["cosine_gap"] = found["positives_cosine"] - found["negatives_cosine"]
    return {name: found[name] for name in MEASURES if name in found}  # no colours where images are not RGB


def accuracies(backbone: nn.Module, known: Images, asked: Images) -> dict[str, float]:
    """kNN and linear accuracy, in percent."""
    train, test = features(backbone, known), features(backbone, asked)
    return {"linear": 100 * linear_accuracy(train, test), "knn": 100 * knn_accuracy(train, test, min(20, len(train)))}


def random_network(backbone: nn.Module, images: Images, seed: int = 0) -> nn.Module:
    """The same network with random weights, whose batch norms have the statistics of the images."""
    with preserve_random_state(seed):
        network = fresh_copy(backbone)
    network.preprocessing = backbone.preprocessing
    with preserve_random_state(), torch.no_grad(), evaluation_mode(network):
        for norm in (norm for norm in batch_norms(network) if norm.track_running_stats):
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over all batches
            norm.train()
        for batch in images.sample(1024).split(256):
            if len(batch) > 1:
                network(network.preprocessing(batch.to(device_of(network))))
    return network


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """The rank correlation; NaN if one of the two is constant."""
    return float(_row_correlation(_ranks(np.array([x])), _ranks(np.array([y])))[0])


def interval(x: Sequence[float], y: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of ``spearman``: networks are drawn with replacement."""
    drawn = np.random.default_rng(seed).integers(len(x), size=(BOOTSTRAPS, len(x)))
    found = _row_correlation(_ranks(np.array(x)[drawn]), _ranks(np.array(y)[drawn]))
    found = found[np.isfinite(found)]  # a sample of one network only has no correlation
    return tuple(np.quantile(found, (0.025, 0.975)).tolist()) if len(found) else (math.nan, math.nan)


def _ranks(values: np.ndarray) -> np.ndarray:
    return stats.rankdata(values, axis=1)


def _row_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = (part - part.mean(1, keepdims=True) for part in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))


def within_methods(rows: list[dict[str, Any]], measure: str, accuracy: str) -> tuple[float, int]:
    """Spearman of the differences from the mean of their method, over methods with two runs or more; and how many runs."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["method"] != RANDOM:
            groups.setdefault(row["method"], []).append(row)
    differences = []
    for group in groups.values():
        if len(group) > 1:
            pairs = np.array([[row["values"][measure], row["values"][accuracy]] for row in group])
            differences += (pairs - pairs.mean(0)).tolist()
    return (
        (spearman(*zip(*differences, strict=True)), len(differences)) if len(differences) >= FEWEST else (math.nan, 0)
    )


def correlation_table(rows: list[dict[str, Any]]) -> str:
    """A line for each measure: its correlations with linear and kNN accuracy, the strongest first."""
    head = ["measure", "networks"]
    for accuracy in ACCURACIES:
        head += [f"{accuracy}: Spearman", "95 % interval", "Kendall", "p", "within methods"]
    lines = []
    for measure in MEASURES:
        usable = [row for row in rows if math.isfinite(row["values"].get(measure, math.nan))]
        if len(usable) < FEWEST:
            continue
        line: list[Any] = [measure, len(usable)]
        x = [row["values"][measure] for row in usable]
        for accuracy in ACCURACIES:
            y = [row["values"][accuracy] for row in usable]
            low, high = interval(x, y)
            kendall = stats.kendalltau(x, y)
            inner, count = within_methods(usable, measure, accuracy)
            line += [f"{spearman(x, y):+.2f}", f"{low:+.2f} to {high:+.2f}", f"{kendall.statistic:+.2f}"]
            line += [f"{kendall.pvalue:.2g}", f"{inner:+.2f} ({count} runs)" if count else None]
        lines.append(line)
    return table(head, sorted(lines, key=lambda line: -abs(float(line[2])) if line[2] != "+nan" else 0))


def run_table(rows: list[dict[str, Any]]) -> str:
    """A line for each network, the most accurate first."""
    names = [name for name in MEASURES if any(name in row["values"] for row in rows)]
    lines = [
        [row["run"], *(f"{row['values'][name]:.1f}" for name in ACCURACIES)]
        + [f"{row['values'][name]:.3g}" if name in row["values"] else None for name in names]
        for row in sorted(rows, key=lambda row: -row["values"]["linear"])
    ]
    return table(["network", "linear, %", "kNN, %", *names], lines)


class Rows:
    """The rows that were measured, kept in a file line by line, so that an interrupted measurement can continue."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.file, self.options = options.rows, {k: getattr(options, k) for k in ("data", "size", "images", "evaluate")}
        kept = self.file.read_text().splitlines() if self.file and self.file.exists() else []
        lines = [json.loads(line) for line in kept]
        self.found = {line["key"]: line["row"] for line in lines if line["options"] == self.options}

    def get(self, key: str, make: Any) -> dict[str, Any]:
        """The row of this key, made and kept if there is none."""
        if key not in self.found:
            began = time.perf_counter()
            self.found[key] = make()
            seconds = time.perf_counter() - began
            print(f"{self.found[key]['run']}: {seconds:.1f} s", file=sys.stderr, flush=True)
            if self.file:
                line = {"key": key, "options": self.options, "row": self.found[key], "seconds": round(seconds, 1)}
                with self.file.open("a") as file:
                    file.write(json.dumps(line) + "\n")
        return self.found[key]


def all_rows(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """The rows of all runs of the folder that can be loaded, and of the random networks."""
    train, test = open_splits(options.data, options.size)
    images = random_part(train, options.images)
    known, asked = random_part(train, options.evaluate), random_part(test, options.evaluate)
    rows, kept = {}, Rows(options)

    def row(run: str, method: str, backbone: nn.Module) -> dict[str, Any]:
        values = accuracies(backbone, known, asked) | measured(backbone, images, options.images)
        return {"run": run, "method": method, "architecture": describe(backbone), "values": values}

    def random_row(backbone: nn.Module) -> dict[str, Any]:
        return row(f"random {describe(backbone).split(',')[0]}", RANDOM, random_network(backbone, images))

    for path in sorted(options.store.glob("*.pt")):
        stamp = f"{path.stem} {path.stat().st_size} {path.stat().st_mtime_ns}"
        if stamp not in kept.found:
            try:
                backbone = open_backbone(path.with_suffix("")).to(device)
            except (ValueError, TypeError, OSError) as error:
                print(f"{path.name} is left out: {error}", file=sys.stderr)
                continue
            method = re.sub(r"-\d+$", "", path.stem)
            architecture = describe(backbone)
            kept.get(stamp, lambda name=path.stem, m=method, b=backbone: row(name, m, b))
            kept.get(f"random {architecture}", lambda b=backbone: random_row(b))
        rows[stamp] = kept.found[stamp]
        key = f"random {rows[stamp]['architecture']}"
        if key in kept.found:
            rows[key] = kept.found[key]
    return list(rows.values())


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="a folder of stored runs")
    parser.add_argument("--data", help="a folder with train/CLASS and test/CLASS, or cifar10; default: the photographs")
    parser.add_argument("--size", type=int, help="pixels; 32 for the photographs, the images' own size otherwise")
    parser.add_argument("--images", type=int, default=2000, help="unlabelled training images that are measured")
    parser.add_argument("--evaluate", type=int, default=4000, help="labelled images of each split for the accuracies")
    parser.add_argument("--rows", type=Path, help="a file that keeps each row, so that an interrupted run can continue")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--write", action="store_true", help="append the tables to bench/RESULTS.md")
    options = parser.parse_args(arguments)
    if options.images < 40:
        parser.error(f"--images {options.images} are too few; pass 40 or more.")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints, and with ``--write`` appends to RESULTS.md."""
    options = parse(arguments)
    device = pick_device(options.device)
    began = machine(device)
    print(began)
    rows = all_rows(options, device)
    if not rows:
        raise SystemExit(f"{options.store} holds no run that can be loaded; pass a folder with NAME.pt files.")
    tables = [run_table(rows), correlation_table(rows)]
    print("\n" + "\n\n".join(tables))
    if options.write:
        title = f"measures without labels, {len(rows)} networks, {options.images} images"
        append(section(title, device, command("bench.label_free", arguments), began, tables))


if __name__ == "__main__":
    main()
