"""What the framework costs on top of the network: shares of the training time, checkpoints, and the import.

    python -m bench.overhead [--algorithms rotatenet,byol] [--backbone resnet18] [--size 32] [--epochs 2] [--write]

training     one process; every part of a run is timed inside it: the algorithm itself (forward, backward, optimizer, averages
             and queues), the loop around it, loading, saving, the monitor, the other trackers. What comes once per epoch or per
             run is also given as a share of an epoch over 50,000 images, the size of CIFAR-10.
checkpoints  size of NAME.pt, and seconds to write and to read it
import       ``import superself`` next to ``import torch, torchvision``, in fresh processes that take turns: seconds, memory
"""

from __future__ import annotations

import argparse
import functools
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bench.report import append, command, listed, machine, pick_device, section, spread, table
from superself import create, training
from superself.data import Images, loader, photos
from superself.evaluation.monitor import MonitorTracker
from superself.supervisor import Supervisor
from superself.training.checkpoint import read_checkpoint, write_checkpoint
from superself.training.precision import autocast

CIFAR10 = 50_000  # images of an epoch that shares are extrapolated to
ALGORITHM = ("_forward", "_update", "_after_step")  # everything else in a step is ours
TRAINING_HEAD = ("part", "s", "times", "% of this run", "% of an epoch of 50,000 images")
CHECKPOINT_HEAD = ("algorithm, backbone", "MiB", "write, s", "read, s")
IMPORT_HEAD = ("import", "s", "times torch, torchvision", "MiB")
PRECISION_HEAD = ("entering and leaving the context of a step", "us")


class Stopwatch:
    """Adds up the seconds spent in named parts; what a part calls that is timed too counts for the inner part alone."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._inner = [0.0]  # seconds of the timed calls within each open part

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, whose time counts for ``part``."""

        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            began = self._now()
            try:
                return function(*args, **kwargs)
            finally:
                passed = self._now() - began
                self.seconds[part] += passed - self._inner.pop()
                self._inner[-1] += passed
                self.calls[part] += 1

        return measured

    def attach(self, part: str, owner: Any, *names: str) -> None:
        """Times methods of an object."""
        for name in names:
            setattr(owner, name, self.timed(part, getattr(owner, name)))

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def measure_training(
    name: str, backbone: str, images: Images, batch_size: int, epochs: int, device: torch.device
) -> list:
    """Rows of the table of one algorithm: where the time of a run with all defaults goes."""
    watch = Stopwatch(device)
    supervisor = create(name, images, backbone=backbone, seed=0).to(device)
    watch.attach("algorithm", supervisor, *ALGORITHM)
    make_trackers = supervisor._trackers

    def timed_trackers() -> list[Any]:
        trackers = make_trackers()
        for tracker in trackers:
            part = "monitor" if isinstance(tracker, MonitorTracker) else "progress and record"
            watch.attach(part, tracker, "start", "step", "measure", "epoch", "end")
        watch.attach("saving", supervisor.run, "save")
        return trackers

    supervisor._trackers = timed_trackers
    plan = watch.timed("time estimate", training.run.describe_plan)
    fetch = watch.timed("loading", loader._Fetch.__getitems__)
    with (
        mock.patch.object(training.run, "describe_plan", plan),
        mock.patch.object(loader._Fetch, "__getitems__", fetch),
        tempfile.TemporaryDirectory() as folder,
    ):
        whole = watch.timed("loop and start", functools.partial(Supervisor.supervise, supervisor))
        whole(epochs=epochs, batch_size=batch_size, name=Path(folder, "run"), progress=True)
    return training_rows(watch, epochs, len(images))


def training_rows(watch: Stopwatch, epochs: int, images: int) -> list[list[Any]]:
    """The table of one run, and the shares in an epoch of 50,000 images."""
    total = sum(watch.seconds.values())
    per_step = ("algorithm", "loading", "loop and start")  # the start is small, and counted as if it came every time
    epoch = {
        part: seconds / epochs * (CIFAR10 / images if part in per_step else 1)
        for part, seconds in watch.seconds.items()
    }
    rows = [
        [
            part,
            watch.seconds[part],
            watch.calls[part],
            100 * watch.seconds[part] / total,
            100 * epoch[part] / sum(epoch.values()),
        ]
        for part in sorted(watch.seconds, key=watch.seconds.get, reverse=True)
    ]
    ours = [row for row in rows if row[0] not in ("algorithm", "loading")]
    rows.append(
        ["all but algorithm and loading", *(sum(row[i] for row in ours) if i != 2 else None for i in (1, 2, 3, 4))]
    )
    return rows


def measure_checkpoint(name: str, backbone: str | None, size: int) -> list[Any]:
    """A row: the checkpoint of a run over 200 images."""
    supervisor = create(name, photos("train", size, 200), backbone=backbone, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run")
        supervisor.supervise(epochs=1, batch_size=50, name=path, progress=False)
        stored = read_checkpoint(path)
        writing, reading = [], []
        for _ in range(5):
            began = time.perf_counter()
            write_checkpoint(path, stored)
            writing.append(time.perf_counter() - began)
            began = time.perf_counter()
            read_checkpoint(path)
            reading.append(time.perf_counter() - began)
        mib = path.with_suffix(".pt").stat().st_size / 2**20
    return [f"{name}, {backbone or 'default'}", mib, spread(writing, 2), spread(reading, 2)]


def measure_import(rounds: int = 5) -> list[list[Any]]:
    """Rows: seconds and memory of the two imports, which take turns."""
    statements = ("import torch, torchvision", "import superself")
    seconds: dict[str, list[float]] = {statement: [] for statement in statements}
    memory: dict[str, list[float]] = {statement: [] for statement in statements}
    for _ in range(rounds):
        for statement in statements:
            code = (
                f"import time; began = time.perf_counter(); {statement}; passed = time.perf_counter() - began\n"
                "from bench.turns import process_peak; print(passed, process_peak())"
            )
            found = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            ).stdout.split()
            seconds[statement].append(float(found[0]))
            memory[statement].append(float(found[1]))
    first = statistics.median(seconds[statements[0]])
    return [[s, spread(seconds[s], 2), statistics.median(seconds[s]) / first, spread(memory[s])] for s in statements]


def measure_contexts(device: torch.device, count: int = 2000) -> list[list[Any]]:
    """Rows: what the precision of a run costs per step, with and without Lightning Fabric."""
    contexts = {
        "32-true: no context": autocast("32-true", device),
        "bf16-mixed: Lightning Fabric": autocast("bf16-mixed", device),
        "bf16-mixed: torch.autocast": functools.partial(torch.autocast, device.type, torch.bfloat16),
    }
    rows = []
    for name, context in contexts.items():
        began = time.perf_counter()
        for _ in range(count):
            with context():
                pass
        rows.append([name, 1e6 * (time.perf_counter() - began) / count])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", type=listed(str), default=["rotatenet", "byol"])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=32, help="pixels of the images")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--write", action="store_true", help="append the tables to bench/RESULTS.md")
    options = parser.parse_args(arguments)
    device = pick_device(options.device)
    facts = machine(device)
    tables = [table(IMPORT_HEAD, measure_import()), table(PRECISION_HEAD, measure_contexts(device))]
    kinds = [(name, backbone) for name in options.algorithms for backbone in (options.backbone, None)]
    tables.append(table(CHECKPOINT_HEAD, [measure_checkpoint(*kind, options.size) for kind in kinds]))
    for name in options.algorithms:
        images = photos("train", options.size)
        rows = measure_training(name, options.backbone, images, options.batch_size, options.epochs, device)
        title = (f"{name}, {options.backbone}: {TRAINING_HEAD[0]}", *TRAINING_HEAD[1:])
        tables.append(table(title, rows))
    text = section("what the framework costs", device, command("bench.overhead", arguments), facts, tables)
    print(text)
    if options.write:
        append(text)


if __name__ == "__main__":
    main()
