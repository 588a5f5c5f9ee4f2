"""What batch norm in the heads does to BYOL: seven variants in equal time, with several seeds.

    python -m bench.byol_batch_norm --data PATH --minutes 3 --seeds 0,1,2 [--backbone resnet18] [--rows FILE] [--write]
    python -m bench.byol_batch_norm --variants base,no_norm,group_ws --optimizer adam --lr 1e-3 --momentum 0.99

PATH has train/CLASS and test/CLASS. The variants are those of train_blog.py in github.com/untitled-ai/self_supervised, made from
parts (SiameseSupervisor), and the network with random weights; "group_ws" and "batch_renorm" can be added. As there: two-layer
heads of 512 and 128, both views as queries, a second network whose momentum rises from 0.996 to 1, SGD with momentum 0.9 and
weight decay 1e-4, a cosine schedule, lr 0.8 for batches of 256 (0.02 for the cross-entropy), scaled by the size of the batch.
Unlike there: time instead of ten epochs of STL-10, 4096 rows in the queue of the cross-entropy, and --momentum for short runs.
``--minutes`` is the training time of a variant with a seed. Cosines, between an embedding and the keys of its own and of other
images, are means over the last epoch; the spread of the embeddings is relative to that of vectors that are uniform on the sphere.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.learning import SCHEDULE, Race, open_splits
from bench.report import append, command, listed, machine, pick_device, section, table
from superself import Supervisor, Tracker, create
from superself.data import Images
from superself.evaluation.monitor import spread
from superself.training import Schedule

HEAD = (
    *("variant", "projector", "predictor", "loss", "seeds"),
    *("kNN, %", "linear, %", "cosine, same image", "cosine, others", "spread, %"),
)
MEASURES = ("knn", "linear", "positive_cosine", "negative_cosine", "spread")
SAME = (
    *("data", "size", "minutes", "backbone", "batch_size", "optimizer", "lr", "momentum"),
    *("images", "evaluate"),
)  # options that the results of a file must share
BATCH = 256  # that the learning rates belong to
RANDOM = "random"


@dataclass(frozen=True)
class Variant:
    """One row: the norms of both heads, and the learning rate of SGD for batches of 256."""

    projector: str | None
    predictor: str | None
    lr: float = 0.8
    arguments: dict[str, Any] = field(default_factory=lambda: {"objective": "ip", "negatives": ()})
    weight_standardization: bool = False

    def heads(self) -> dict[str, dict[str, Any]]:
        """The arguments of both heads."""
        extra = {"weight_standardization": True} if self.weight_standardization else {}
        return {"projector": {"norm": self.projector, **extra}, "predictor": {"norm": self.predictor, **extra}}

    def cells(self) -> list[str]:
        """How the table names it."""
        suffix = ", standardised weights" if self.weight_standardization else ""
        norms = [f"{norm.replace('_', ' ')} norm{suffix}" if norm else "-" for norm in (self.projector, self.predictor)]
        return [*norms, self.arguments["objective"]]


CONTRASTIVE = {"objective": "ce", "negatives": ("queue",)}
VARIANTS = {
    "xent": Variant(None, None, 0.02, CONTRASTIVE),
    "base": Variant("batch", "batch"),
    "proj_only": Variant("batch", None),
    "pred_only": Variant(None, "batch"),
    "no_norm": Variant(None, None),
    "layer_norm": Variant("layer", "layer"),
    RANDOM: None,
    "group_ws": Variant(
        "group", "group", weight_standardization=True
    ),  # as in arXiv:2010.10241, which answers the study
    "batch_renorm": Variant("batch_renorm", "batch_renorm"),
}
STUDY = list(VARIANTS)[:7]


class LastRow(Tracker):
    """Keeps what was measured in the last epoch."""

    def __init__(self) -> None:
        self.row: dict[str, Any] = {}

    def epoch(self, row: dict[str, Any]) -> None:
        """Replaces the row of the epoch before."""
        self.row = row


class Trial(Race):
    """One variant with one seed: trained as in bench.learning, with the study's optimizer."""

    def __init__(self, name: str, train: Images, test: Images, seed: int, options: argparse.Namespace) -> None:
        super().__init__("siamese", train, test, seed, options)
        self.variant, self.last = VARIANTS[name], LastRow()
        self.observers = [self.last]

    def measure(self) -> dict[str, dict[str, float]]:
        """What the variant and the network with random weights reach."""
        supervisor, seconds, seen = self.train_ours()
        random, trained = self.compared(supervisor.get_backbone())
        row = self.last.row
        cosines = {name: row[name] for name in ("positive_cosine", "negative_cosine")}
        print(
            f"  {seen:,} images in {seconds:.0f} s, linear {100 * trained['linear']:.1f}", file=sys.stderr, flush=True
        )
        return {"trained": {**trained, **cosines, "spread": spread(row)["embeddings"]}, RANDOM: random}

    def make(self, images: Images) -> Supervisor:
        """A supervisor of this variant with random weights."""
        momentum = Schedule(self.options.momentum, 1.0)
        arguments = {**self.variant.arguments, **self.variant.heads(), "symmetric": True, "momentum": momentum}
        arguments |= {"backbone": self.options.backbone, "seed": self.seed}
        return create("siamese", images, **arguments).to(self.device)

    def optimization(self) -> dict[str, Any]:
        """What supervise() gets of the optimizer."""
        if self.options.optimizer == "adam":
            return {"lr": self.options.lr or 1e-3, "lr_scheduler": SCHEDULE}
        lr = (self.options.lr or self.variant.lr) * self.options.batch_size / BATCH
        sgd = partial(torch.optim.SGD, momentum=0.9)
        return {"lr": lr, "optimizer": sgd, "weight_decay": 1e-4, "lr_scheduler": "cosine"}


def results(options: argparse.Namespace) -> dict[tuple[str, int], dict[str, float]]:
    """What each variant reaches with each seed; what the file ``options.rows`` holds is not measured again."""
    same = {name: getattr(options, name) for name in SAME}
    found: dict[tuple[str, int], dict[str, float]] = {}
    if options.rows and options.rows.exists():
        for kept in map(json.loads, options.rows.read_text().splitlines()):
            if kept["options"] == same:
                found[kept["variant"], kept["seed"]] = kept["found"]

    def keep(name: str, seed: int, measured: dict[str, float]) -> None:
        found[name, seed] = measured
        if options.rows:
            with options.rows.open("a") as file:
                file.write(json.dumps({"variant": name, "seed": seed, "found": measured, "options": same}) + "\n")

    for seed in options.seeds:
        for name in options.variants:
            if name != RANDOM and (name, seed) not in found:
                print(f"{name}, seed {seed} ...", file=sys.stderr, flush=True)
                measured = Trial(name, *open_splits(options.data, options.size), seed, options).measure()
                keep(name, seed, measured["trained"])
                if (RANDOM, seed) not in found:
                    keep(RANDOM, seed, measured[RANDOM])
    return found


def rows(found: dict[tuple[str, int], dict[str, float]], names: Sequence[str]) -> list[list[Any]]:
    """The rows of the table: means and standard deviations over the seeds."""
    made = []
    for name in names:
        own = [measured for (variant, _), measured in found.items() if variant == name]
        if own:
            facts = VARIANTS[name].cells() if VARIANTS[name] else ["-", "-", "-"]
            made.append([name, *facts, len(own), *(summary(own, measure) for measure in MEASURES)])
    return made


def summary(found: Sequence[dict[str, float]], measure: str) -> str | None:
    """Mean and standard deviation, as in "31.0 (0.4)": accuracies and spread in percent; None where nothing was measured."""
    values = [measured[measure] for measured in found if measured.get(measure) is not None]
    if not values:
        return None
    cosine = measure.endswith("cosine")
    digits, scale = (2, 1.0) if cosine else (1, 100.0)
    numbers = [scale * value for value in values]
    deviation = f" ({statistics.stdev(numbers):.{digits}f})" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.{digits}f}{deviation}"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder with train/CLASS and test/CLASS, or cifar10; default: the photographs")
    parser.add_argument("--size", type=int, help="pixels; 32 for the photographs, the images' own size otherwise")
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of a variant with a seed")
    parser.add_argument("--seeds", type=listed(int), default=[0, 1, 2], help="joined by commas")
    parser.add_argument("--variants", type=listed(str), default=STUDY, help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--optimizer", choices=("sgd", "adam"), default="sgd")
    parser.add_argument("--lr", type=float, help="of batches of 256 with sgd; default: the study's, and 1e-3 with adam")
    parser.add_argument("--momentum", type=float, default=0.996, help="of the second network; 0.99 for short runs")
    parser.add_argument("--images", nargs="*", default=[], help="size of a fixed random part to train on")
    parser.add_argument("--evaluate", type=int, default=5000, help="largest number of images to measure features on")
    parser.add_argument("--rows", type=Path, help="a file that stores each result, so that a study can continue")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--write", action="store_true", help="append the table to bench/RESULTS.md")
    parser.set_defaults(store=None)  # trained networks are not kept
    options = parser.parse_args(arguments)
    options.set = {}  # of bench.learning
    if unknown := [name for name in options.variants if name not in VARIANTS]:
        parser.error(f"there is no variant {', '.join(unknown)}; pass some of {', '.join(VARIANTS)}.")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Trains, measures, prints, and with ``--write`` appends to RESULTS.md."""
    options = parse(arguments)
    device = pick_device(options.device)
    began = machine(device)
    print(began)
    made = table(HEAD, rows(results(options), options.variants))
    print("\n" + made)
    if options.write:
        train = open_splits(options.data, options.size)[0]
        title = f"batch norm in BYOL, {options.backbone}, {train.shape[1]} pixels, {len(train)} images"
        note = "Means over the seeds, standard deviations in parentheses."
        append(section(title, device, command("bench.byol_batch_norm", arguments), began, [note, made]))


if __name__ == "__main__":
    main()
