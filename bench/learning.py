"""How well in equal time: ours and lightly's equivalent on the same images, beside the random initialisation.

    python -m bench.learning --algorithm byol [--minutes 5] [--size 32] [--backbone resnet18] [--seeds 0,1,2] [--write]
    python -m bench.learning --algorithm all --no-peer --data PATH [--jobs 2] [--rows FILE]

PATH has train/CLASS and test/CLASS. ``--minutes`` is the training time of each contestant, for each algorithm and seed;
measuring the speed before and the features after comes on top (about a minute on two cores at 32 pixels). A few steps are timed
first, and as many epochs are trained as fit into the time, on a fixed random part of the images where an epoch is longer; the
peer gets the time that ours took. Both sides have Adam, the same learning rate and schedule (a tenth of warm-up, then a
cosine); ours has its own precision, lightly's loop float32, as its documentation has it. The loss of test images is that of the
pretext task in evaluation mode: memory banks are filled with the test images first, and ExemplarNet, which knows no others, is
asked for new views of the images it was trained on. kNN and linear probe: see superself.evaluation.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench import peers
from bench.contestants import hooked
from bench.pretext import held_out_loss, reconstruction_errors
from bench.report import CORES, append, command, listed, machine, pick_device, section, table
from superself import Supervisor, compare
from superself.algorithms import ALGORITHMS
from superself.data import Images, Preprocessing, open_images, photos
from superself.data.sources import TensorSource
from superself.evaluation import features, knn_accuracy, linear_accuracy
from superself.networks import build_backbone, describe
from superself.training import warmup_cosine

HEAD = (
    *("algorithm", "contestant", "seed", "minutes", "images seen", "images/s"),
    *("kNN, %", "linear, %", "loss of test images"),
)
SAME = ("data", "size", "minutes", "backbone", "batch_size", "lr", "evaluate", "peer")  # of the rows of a table
SCHEDULE = warmup_cosine(0.1)
WARM = 2.0  # seconds that are timed before, at the least
ROUNDED = 0.1  # of an epoch: a last one that is shorter is not begun
LOSS_OF = 512  # images that the pretext loss is measured on, at the most
BASELINES: dict[tuple[str, int], dict[str, float]] = {}  # of random networks, by description and seed


@dataclass(frozen=True)
class Plan:
    """Epochs, and how many of the images each goes through."""

    epochs: int
    images: int


def plan(seconds: float, step_seconds: float, epoch_seconds: float, images: int, batch_size: int) -> Plan:
    """What fits into the time: whole epochs of equal length, of fewer images where the last one would not be whole.

    Args:
        seconds: of training.
        step_seconds: that a step takes.
        epoch_seconds: that an epoch takes beside its steps.
        images: that there are.
        batch_size: of a step.
    """
    in_all = math.ceil(images / batch_size)
    epochs = max(1, math.ceil(seconds / (in_all * step_seconds + epoch_seconds) - ROUNDED))
    steps = max(1, int((seconds / epochs - epoch_seconds) / step_seconds))
    return Plan(epochs, images if steps >= in_all else steps * batch_size)


def some(images: Images, count: int, seed: int = 0) -> Images:
    """A fixed random part of the images, in memory."""
    if count >= len(images):
        return images.load()
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count].sort().values
    batch = images.batch(chosen)
    targets = None if batch.target is None else batch.target.clone()
    return Images(TensorSource(batch.images, targets, images.classes))


class Race:
    """One algorithm with one seed: trains and measures its contestants.

    Args:
        algorithm: its name.
        train: labelled images that are trained on, without their labels.
        test: labelled images.
        seed: of everything.
        options: of the command line.
    """

    def __init__(self, algorithm: str, train: Images, test: Images, seed: int, options: argparse.Namespace) -> None:
        self.algorithm, self.seed, self.options = algorithm, seed, options
        self.train = some(train, images_for(options, algorithm) or len(train))
        self.device = pick_device(options.device)
        self.known, self.asked = some(train, options.evaluate), some(test, options.evaluate)
        self.arguments = options.set.get(algorithm, {})

    def rows(self) -> list[list[Any]]:
        """Rows of the table: random initialisation, ours, and the peer where there is one."""
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
        """What ``compare`` finds for the random and the trained network; the random one is measured once in a process."""
        key = (describe(backbone), self.seed)
        if key in BASELINES:
            return BASELINES[key], self.accuracies(backbone)
        found = compare(backbone, self.known, self.asked, seed=self.seed, print=False).rows
        BASELINES[key] = found["random initialised"]
        return found["random initialised"], found["trained"]

    def loss_cell(self, supervisor: Supervisor) -> str:
        """The pretext loss, and what knowing nothing gives."""
        images, places, remark = self.asked, torch.arange(len(self.asked)), ""
        if hasattr(supervisor, "knows_its_images"):  # each image is a class: others have none
            images, remark = supervisor.images, ", training images"
            places = supervisor._sampler(1, shuffle=False).places
        if hasattr(supervisor, "reconstruct"):  # of two players neither loss tells: what comes back does
            own, of_others = reconstruction_errors(supervisor, self.asked)
            remark = f", what comes back {own:.3f} from its image (the mean 1), {of_others:.3f} from others"
        loss, chance = held_out_loss(supervisor, images, places[:LOSS_OF], self.options.batch_size)
        return f"{loss:.3f}" + ("" if chance is None else f" (chance {chance:.3f})") + remark

    def row(self, name: str, seconds: float, seen: int, found: dict[str, float], loss: str | None = None) -> list[Any]:
        """A row of the table."""
        accuracies = (f"{100 * found[measure]:.1f}" for measure in ("knn", "linear"))
        rate = f"{seen / seconds:.1f}" if seconds else None
        return [self.algorithm, name, self.seed, f"{seconds / 60:.2f}", f"{seen:,}", rate, *accuracies, loss]

    def make(self, images: Images, timed: bool = False) -> Supervisor:
        """A supervisor whose steps are noted, as (time or 0, last of its epoch)."""
        supervisor = hooked(ALGORITHMS[self.algorithm])(
            images, backbone=self.options.backbone, seed=self.seed, **self.arguments
        ).to(self.device)
        supervisor.ticks = []
        supervisor.after_step = lambda last: supervisor.ticks.append((self.now() if timed else 0.0, last))
        return supervisor

    def supervise(self, supervisor: Supervisor, epochs: int) -> float:
        """Trains silently; the seconds that it took."""
        began = self.now()
        with tempfile.TemporaryDirectory() as folder:
            supervisor.supervise(
                lr=self.options.lr,
                epochs=epochs,
                batch_size=self.options.batch_size,
                name=Path(folder) / "run",
                lr_scheduler=SCHEDULE,
                progress=False,
            )
        return self.now() - began

    def train_ours(self) -> tuple[Supervisor, float, int]:
        """Times a few steps, then trains as long as the time allows: supervisor, seconds, images seen."""
        batch, seconds = self.options.batch_size, 60 * self.options.minutes
        steps, warm = 3, False
        while not warm:
            supervisor = self.make(some(self.train, steps * batch), timed=True)
            self.supervise(supervisor, epochs=2)
            step, epoch = pace(supervisor.ticks)
            warm = 2 * steps * step > min(WARM, seconds / 20) or steps * batch >= len(self.train)
            steps *= 4
        length = self.make(self.train)._sampler(batch, shuffle=False).n  # of an epoch: ExemplarNet trains on a part
        planned = plan(seconds, step, epoch, length, batch)
        supervisor = self.make(some(self.train, planned.images))
        taken = self.supervise(supervisor, planned.epochs)
        return supervisor, taken, len(supervisor.ticks) * batch

    def train_peer(self, seconds: float) -> tuple[nn.Module, float, int]:
        """The same with lightly's loop: backbone, seconds, images seen."""
        ticks: list[float] = []
        for _ in self.peer_loop(steps=10**6)[1]:
            ticks.append(self.now())
            if len(ticks) > 3 and ticks[-1] - ticks[1] > seconds / 20:
                break
        steps = max(1, int(seconds * (len(ticks) - 2) / (ticks[-1] - ticks[1])))  # the mean: workers deliver in bursts
        backbone, loop = self.peer_loop(steps)
        began = self.now()
        for _ in loop:
            pass
        return backbone, self.now() - began, steps * self.options.batch_size

    def peer_loop(self, steps: int) -> tuple[nn.Module, Any]:
        """A new peer: its backbone, and the loop that trains it."""
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
        """kNN and linear accuracy, as ``compare`` has them."""
        known, asked = features(backbone, self.known), features(backbone, self.asked)
        return {"knn": knn_accuracy(known, asked), "linear": linear_accuracy(known, asked, seed=self.seed)}

    def now(self) -> float:
        """The time when the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def pace(ticks: list[tuple[float, bool]]) -> tuple[float, float]:
    """Seconds of a step (median) and what an epoch takes besides, of the times at which steps ended."""
    pairs = list(zip(ticks, ticks[1:], strict=False))
    step = statistics.median(after - before for (before, last), (after, _) in pairs if not last)
    between = [after - before for (before, last), (after, _) in pairs if last]
    return step, max(0.0, statistics.median(between) - step) if between else 0.0


def means(rows: list[list[Any]]) -> list[list[Any]]:
    """For each algorithm and contestant a row with the mean over its seeds and their range."""
    groups: dict[tuple[str, str], list[list[Any]]] = {}
    for row in rows:
        groups.setdefault((row[0], row[1]), []).append(row)
    summary = []
    for (algorithm, name), own in groups.items():
        knn, linear = ([float(row[i]) for row in own] for i in (6, 7))
        cells = (f"{statistics.mean(x):.1f} ({min(x):.1f} - {max(x):.1f})" for x in (knn, linear))
        summary.append([algorithm, name, f"mean of {len(own)}", None, None, None, *cells, None])
    return summary


@cache
def open_splits(data: str | None, size: int | None) -> tuple[Images, Images]:
    """Training and test images with labels: of PATH/train and PATH/test, of a name, or the embedded photographs."""
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
    parser.add_argument("--algorithm", type=listed(str), default=["byol"], help="names joined by commas, or all")
    parser.add_argument("--data", help="a folder with train/CLASS and test/CLASS, or cifar10; none: the photographs")
    parser.add_argument("--size", type=int, help="pixels; 32 for the photographs, the images' own size otherwise")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, for each contestant")
    parser.add_argument("--seeds", type=listed(int), default=[0], help="joined by commas")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--set", type=setting, nargs="*", default=[], help="arguments of algorithms, as byol.momentum=0.99"
    )
    parser.add_argument("--jobs", type=int, default=1, help="algorithms that are trained side by side, on the CPU")
    parser.add_argument("--rows", type=Path, help="a file that keeps each row, so that a run can be continued")
    parser.add_argument(
        "--images", nargs="*", default=[], help="that are trained on, a fixed random part: 2500, or 2500 pirl=300"
    )
    parser.add_argument("--evaluate", type=int, default=5000, help="images of a split that are measured, at the most")
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--write", action="store_true", help="append the table to bench/RESULTS.md")
    options = parser.parse_args(arguments)
    options.set = {name: {k: v for n, k, v in options.set if n == name} for name, _, _ in options.set}
    if options.algorithm == ["all"]:
        options.algorithm = sorted(ALGORITHMS)
    if unknown := set(options.algorithm) - set(ALGORITHMS):
        parser.error(
            f"there is no algorithm {', '.join(sorted(unknown))}; pass some of {', '.join(sorted(ALGORITHMS))}."
        )
    return options


def images_for(options: argparse.Namespace, algorithm: str) -> int | None:
    """How many images the algorithm is trained on at the most."""
    counts = dict(text.split("=") if "=" in text else ("", text) for text in options.images)
    count = counts.get(algorithm, counts.get(""))
    return None if count is None else int(count)


def setting(text: str) -> tuple[str, str, Any]:
    """Algorithm, argument and value of "byol.momentum=0.99"."""
    name, _, value = text.partition("=")
    algorithm, _, argument = name.partition(".")
    return algorithm, argument, ast.literal_eval(value)


def race(algorithm: str, seed: int, options: argparse.Namespace) -> list[list[Any]]:
    """The rows of one algorithm and seed; in a process of its own where several run side by side."""
    if options.jobs > 1:
        torch.set_num_threads(max(1, CORES // options.jobs))
    print(f"{algorithm}, seed {seed} ...", file=sys.stderr, flush=True)
    return Race(algorithm, *open_splits(options.data, options.size), seed, options).rows()


def measured(options: argparse.Namespace) -> list[list[Any]]:
    """All rows: those that the file ``options.rows`` has with the same options are not measured again."""
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
        context = multiprocessing.get_context("spawn")  # a forked process could not use threads of its own
        with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
            futures = {pool.submit(race, *w, options): w for w in missing}
            for future in as_completed(futures):
                keep(*futures[future], future.result())
    return [row for w in wanted for row in rows[w]]


def main(arguments: list[str] | None = None) -> None:
    """Trains, measures, prints, and writes where it is asked to."""
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
