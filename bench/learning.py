"""What is learned in equal time: superself, lightly's equivalent and the random initialisation on the same images.

    python -m bench.learning --algorithm byol [--minutes 5] [--size 32] [--backbone resnet18] [--seeds 0,1,2] [--write]
    python -m bench.learning --algorithm all --no-peer --data PATH [--jobs 2] [--rows FILE]

PATH has train/CLASS and test/CLASS. ``--minutes`` is the training time of each contestant, for each algorithm and seed;
measuring the speed before and the features after takes additional time (about a minute on two cores at 32 pixels). A few steps
are timed first, then as many epochs are trained as fit into the time; if a single epoch takes longer, it is trained on a fixed
random part of the images. lightly gets the time that superself took. Both use Adam and the same learning rate and schedule (a
tenth of warm-up, then a cosine); superself chooses its precision, lightly's loop runs in float32 as in its documentation. The
loss of test images is that of the pretext task in evaluation mode: memory banks are filled with the test images first, and
ExemplarNet, whose classes are its training images, gets new views of these. kNN and linear probe: see superself.evaluation.
"""

from __future__ import annotations

import argparse
import ast
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench import peers
from bench.contestants import EveryStep
from bench.pretext import reconstruction_errors
from bench.report import CORES, append, command, listed, machine, pick_device, section, table
from superself import Supervisor, Tracker, compare
from superself.algorithms import ALGORITHMS, create, list_presets
from superself.comparison import plan, random_part
from superself.data import Images, Preprocessing, open_images, photos
from superself.evaluation import features, held_out_loss, knn_accuracy, linear_accuracy
from superself.networks import build_backbone, describe
from superself.training import warmup_cosine

HEAD = (
    *("algorithm", "contestant", "seed", "minutes", "images seen", "images/s"),
    *("kNN, %", "linear, %", "loss of test images"),
)
SAME = (
    "data",
    "size",
    "minutes",
    "backbone",
    "batch_size",
    "lr",
    "evaluate",
    "peer",
)  # options that rows of a table share
SCHEDULE = warmup_cosine(0.1)
WARM = 2.0  # seconds of steps that are timed at least before training
LOSS_OF = 512  # images that the pretext loss is measured on at most
BASELINES: dict[tuple[str, int], dict[str, float]] = {}  # accuracies of random networks, by description and seed


class Race:
    """One algorithm with one seed: trains and measures its contestants.

    Args:
        algorithm: its name, or that of a preset.
        train: labelled images; training does not use the labels.
        test: labelled images.
        seed: of initial weights, order, views and linear probe.
        options: of the command line.
    """

    def __init__(self, algorithm: str, train: Images, test: Images, seed: int, options: argparse.Namespace) -> None:
        self.algorithm, self.seed, self.options = algorithm, seed, options
        self.train = random_part(train, images_for(options, algorithm) or len(train))
        self.device = pick_device(options.device)
        self.known, self.asked = random_part(train, options.evaluate), random_part(test, options.evaluate)
        self.arguments = options.set.get(algorithm, {})
        self.observers: list[Tracker] = []  # of every run

    def rows(self) -> list[list[Any]]:
        """Rows of the table: random initialisation, superself, and lightly if it has the algorithm."""
        supervisor, seconds, seen = self.train_ours()
        random, trained = self.compared(supervisor.get_backbone())
        rows = [
            self.row("random initialised", 0.0, 0, random),
            self.row("superself", seconds, seen, trained, self.loss_cell(supervisor)),
        ]
        if self.options.peer and self.algorithm in peers.PEERS and peers.has_lightly():
            backbone, seconds, seen = self.train_peer(seconds)
            rows.append(self.row("lightly", seconds, seen, self.accuracies(backbone)))
        return rows

    def compared(self, backbone: nn.Module) -> tuple[dict[str, float], dict[str, float]]:
        """Accuracies of the random and the trained network; the random one is measured once per process."""
        key = (describe(backbone), self.seed)
        if key in BASELINES:
            return BASELINES[key], self.accuracies(backbone)
        found = compare(backbone, self.known, self.asked, seed=self.seed, print=False).rows
        BASELINES[key] = found["random initialised"]
        return found["random initialised"], found["trained"]

    def loss_cell(self, supervisor: Supervisor) -> str:
        """The pretext loss and its chance level."""
        images, remark = random_part(self.asked, LOSS_OF), ""  # of every class, whatever their order
        if supervisor.knows_its_images:  # each training image is a class; other images have none
            images, remark = supervisor.images, ", training images"
        if hasattr(supervisor, "reconstruct"):  # losses of two players say little, reconstruction errors say more
            own, to_others = reconstruction_errors(supervisor, self.asked)
            remark = f", reconstruction error {own:.3f} to its image (mean image: 1), {to_others:.3f} to others"
        loss, chance, _ = held_out_loss(supervisor, images, LOSS_OF, self.options.batch_size)
        return f"{loss:.3f}" + ("" if chance is None else f" (chance {chance:.3f})") + remark

    def row(self, name: str, seconds: float, seen: int, found: dict[str, float], loss: str | None = None) -> list[Any]:
        """A row of the table."""
        accuracies = (f"{100 * found[measure]:.1f}" for measure in ("knn", "linear"))
        rate = f"{seen / seconds:.1f}" if seconds else None
        return [self.algorithm, name, self.seed, f"{seconds / 60:.2f}", f"{seen:,}", rate, *accuracies, loss]

    def make(self, images: Images) -> Supervisor:
        """A supervisor with random weights."""
        arguments = {"backbone": self.options.backbone, "seed": self.seed, **self.arguments}
        return create(self.algorithm, images, **arguments).to(self.device)

    def supervise(
        self, supervisor: Supervisor, epochs: int, trackers: Sequence[Tracker] = (), store: Path | None = None
    ) -> float:
        """Trains without printing, and returns the seconds that it took; the run is kept in ``store``."""
        began = self.now()
        with tempfile.TemporaryDirectory() as folder:
            supervisor.supervise(
                epochs=epochs,
                batch_size=self.options.batch_size,
                name=(store or Path(folder)) / f"{self.algorithm}-{self.seed}",
                progress=False,
                trackers=[*trackers, *self.observers],
                **self.optimization(),
            )
        return self.now() - began

    def optimization(self) -> dict[str, Any]:
        """Arguments of supervise(): learning rate and schedule."""
        return {"lr": self.options.lr, "lr_scheduler": SCHEDULE}

    def train_ours(self) -> tuple[Supervisor, float, int]:
        """Times a few steps, then trains as long as the time allows: supervisor, seconds, images seen."""
        batch, seconds = self.options.batch_size, 60 * self.options.minutes
        steps, warm = 3, False
        while not warm:
            step, epoch = self.time_steps(random_part(self.train, steps * batch))
            warm = 2 * steps * step > min(WARM, seconds / 20) or steps * batch >= len(self.train)
            steps *= 4
        steps_per_epoch = len(self.make(self.train)._sampler(batch, shuffle=False))  # ExemplarNet trains on a part
        planned = plan(seconds, step, epoch, min(len(self.train), steps_per_epoch * batch), batch)
        supervisor = self.make(random_part(self.train, planned.images))
        taken = self.supervise(supervisor, planned.epochs, store=self.options.store)
        return supervisor, taken, supervisor.step * batch

    def time_steps(self, images: Images) -> tuple[float, float]:
        """Seconds of a step, and those of an epoch in addition to its steps, measured in two epochs."""
        ticks: list[tuple[float, bool]] = []
        self.supervise(self.make(images), 2, [EveryStep(lambda last: ticks.append((self.now(), last)))])
        return pace(ticks)

    def train_peer(self, seconds: float) -> tuple[nn.Module, float, int]:
        """The same with lightly's loop: backbone, seconds, images seen."""
        ticks: list[float] = []
        for _ in self.peer_loop(steps=10**6)[1]:
            ticks.append(self.now())
            if len(ticks) > 3 and ticks[-1] - ticks[1] > seconds / 20:
                break
        steps = max(
            1, int(seconds * (len(ticks) - 2) / (ticks[-1] - ticks[1]))
        )  # mean, not median: workers deliver in bursts
        backbone, loop = self.peer_loop(steps)
        began = self.now()
        for _ in loop:
            pass
        return backbone, self.now() - began, steps * self.options.batch_size

    def peer_loop(self, steps: int) -> tuple[nn.Module, Any]:
        """lightly's algorithm with random weights: its backbone, and the loop that trains it."""
        torch.manual_seed(self.seed)
        shape = self.train.shape
        backbone = build_backbone(self.options.backbone, shape)
        peer = peers.PEERS[self.algorithm]
        model = peer(backbone, shape, **self.arguments).to(self.device)
        images = self.train.load().batch(range(len(self.train))).images
        backbone.preprocessing = Preprocessing.of(self.train)
        transform = peer.transform(shape[-1], backbone.preprocessing)
        batch, lr = self.options.batch_size, self.options.lr
        return backbone, peers.lightly_loop(model, images, transform, steps, batch, lr, SCHEDULE)

    def accuracies(self, backbone: nn.Module) -> dict[str, float]:
        """kNN and linear accuracy, measured as in ``compare``."""
        known, asked = features(backbone, self.known), features(backbone, self.asked)
        return {"knn": knn_accuracy(known, asked), "linear": linear_accuracy(known, asked, seed=self.seed)}

    def now(self) -> float:
        """The time after the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def pace(ticks: list[tuple[float, bool]]) -> tuple[float, float]:
    """Seconds of a step (median), and those of an epoch in addition to its steps.

    Args:
        ticks: for each step the time at which it ended, and whether it was the last one of its epoch.
    """
    pairs = list(zip(ticks, ticks[1:], strict=False))
    step = statistics.median(after - before for (before, last), (after, _) in pairs if not last)
    between = [after - before for (before, last), (after, _) in pairs if last]
    return step, max(0.0, statistics.median(between) - step) if between else 0.0


def means(rows: list[list[Any]]) -> list[list[Any]]:
    """A row for each algorithm and contestant with the mean over its seeds and their standard deviation."""
    groups: dict[tuple[str, str], list[list[Any]]] = {}
    for row in rows:
        groups.setdefault((row[0], row[1]), []).append(row)
    summary = []
    for (algorithm, name), own in groups.items():
        knn, linear = ([float(row[i]) for row in own] for i in (6, 7))
        cells = (f"{statistics.mean(x):.1f} ± {statistics.stdev(x) if len(x) > 1 else 0:.1f}" for x in (knn, linear))
        summary.append([algorithm, name, f"mean of {len(own)}", None, None, None, *cells, None])
    return summary


@cache
def open_splits(data: str | None, size: int | None) -> tuple[Images, Images]:
    """Labelled training and test images: of PATH/train and PATH/test, of a name, or the bundled photographs."""
    if data is None:
        return photos("train", size or 32), photos("test", size or 32)
    if Path(data).is_dir():
        data = f"imagefolder:{data}/"
    else:
        data += ":"
    return tuple(open_images(f"{data}{split}", image_size=size).load() for split in ("train", "test"))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--algorithm", type=listed(str), default=["byol"], help="names of algorithms or presets, or all"
    )
    parser.add_argument("--data", help="a folder with train/CLASS and test/CLASS, or cifar10; default: the photographs")
    parser.add_argument("--size", type=int, help="pixels; 32 for the photographs, the images' own size otherwise")
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of each contestant")
    parser.add_argument("--seeds", type=listed(int), default=[0], help="joined by commas")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--set", type=setting, nargs="*", default=[], help="arguments of algorithms, for example byol.momentum=0.99"
    )
    parser.add_argument("--jobs", type=int, default=1, help="algorithms that are trained at the same time, on the CPU")
    parser.add_argument(
        "--rows", type=Path, help="a file that stores each row, so that an interrupted run can continue"
    )
    parser.add_argument(
        "--images", nargs="*", default=[], help="size of a fixed random part to train on: 2500, or 2500 pirl=300"
    )
    parser.add_argument(
        "--evaluate", type=int, default=5000, help="largest number of images of a split that features are measured on"
    )
    parser.add_argument("--store", type=Path, help="a folder that keeps the trained runs, as ALGORITHM-SEED")
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--write", action="store_true", help="append the table to bench/RESULTS.md")
    options = parser.parse_args(arguments)
    options.set = {name: {k: v for n, k, v in options.set if n == name} for name, _, _ in options.set}
    if options.algorithm == ["all"]:
        options.algorithm = sorted(ALGORITHMS)
    known = [*sorted(ALGORITHMS), *list_presets()]
    if unknown := set(options.algorithm) - set(known):
        parser.error(f"there is no algorithm {', '.join(sorted(unknown))}; pass some of {', '.join(known)}.")
    return options


def images_for(options: argparse.Namespace, algorithm: str) -> int | None:
    """The largest number of images that the algorithm is trained on."""
    counts = dict(text.split("=") if "=" in text else ("", text) for text in options.images)
    count = counts.get(algorithm, counts.get(""))
    return None if count is None else int(count)


def setting(text: str) -> tuple[str, str, Any]:
    """Algorithm, argument and value of "byol.momentum=0.99"."""
    name, _, value = text.partition("=")
    algorithm, _, argument = name.partition(".")
    return algorithm, argument, ast.literal_eval(value)


def race(algorithm: str, seed: int, options: argparse.Namespace) -> list[list[Any]]:
    """The rows of one algorithm and seed; in a separate process where several run at the same time."""
    if options.jobs > 1:
        torch.set_num_threads(max(1, CORES // options.jobs))
    print(f"{algorithm}, seed {seed} ...", file=sys.stderr, flush=True)
    return Race(algorithm, *open_splits(options.data, options.size), seed, options).rows()


def measured(options: argparse.Namespace) -> list[list[Any]]:
    """All rows; those that the file ``options.rows`` holds for the same options are not measured again."""
    wanted = [(algorithm, seed) for algorithm in options.algorithm for seed in options.seeds]
    same = {
        a: {**{k: getattr(options, k) for k in SAME}, "set": options.set.get(a, {}), "images": images_for(options, a)}
        for a in options.algorithm
    }
    rows = {}
    if options.rows and options.rows.exists():
        kept = [json.loads(line) for line in options.rows.read_text().splitlines()]
        rows = {(k["algorithm"], k["seed"]): k["rows"] for k in kept if k["options"] == same.get(k["algorithm"])}

    def keep(algorithm: str, seed: int, found: list[list[Any]]) -> None:
        rows[algorithm, seed] = found
        if options.rows:
            line = {"algorithm": algorithm, "seed": seed, "options": same[algorithm], "rows": found}
            with options.rows.open("a") as file:
                file.write(json.dumps(line) + "\n")

    missing = [w for w in wanted if w not in rows]
    if options.jobs == 1:
        for w in missing:
            keep(*w, race(*w, options))
    elif missing:
        context = multiprocessing.get_context("spawn")  # a forked process could not start threads
        with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
            futures = {pool.submit(race, *w, options): w for w in missing}
            for future in as_completed(futures):
                keep(*futures[future], future.result())
    return [row for w in wanted for row in rows[w]]


def main(arguments: list[str] | None = None) -> None:
    """Trains, measures, prints, and with ``--write`` appends to RESULTS.md."""
    options = parse(arguments)
    device = pick_device(options.device)
    began = machine(device)
    print(began)
    if options.peer and not peers.has_lightly():
        print(peers.MISSING)
    rows = measured(options)
    rows += means(rows) if len(options.seeds) > 1 else []
    print("\n" + table(HEAD, rows))
    if options.write:
        train = open_splits(options.data, options.size)[0]
        title = f"learning, {options.backbone}, {train.shape[1]} pixels, {len(train)} images"
        append(section(title, device, command("bench.learning", arguments), began, [table(HEAD, rows)]))


if __name__ == "__main__":
    main()
