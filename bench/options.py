"""What options of ``supervise()`` cost and gain: compiled networks, split batches, clipping, averages; in turn with a plain run.

    python -m bench.options [--algorithms byol,rotatenet] [--options compile,micro_batch,accumulate,clip,average] [--minutes 5]
    python -m bench.options --options micro_batch,accumulate --batch-size 256 --parts 8     the memory of a split batch

Each contestant has a separate process that is stopped between its turns. Speeds are medians of the turns (smallest - largest) and
do not include the minute or so that the first step of a compiled network takes. On a CPU the peak memory of a process includes
about 500 MiB of libraries.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.contestants import Setting, train
from bench.report import append, command, listed, machine, pick_device, ratio, section, spread, table
from bench.throughput import open_tensor
from bench.turns import Contestant, Meter, Window, rates, take_turns
from superself.algorithms import ALGORITHMS

OPTIONS = ("compile", "micro_batch", "accumulate", "clip", "average")
HEAD = ("algorithm", "option", "images/s", "times plain", "process, MiB", "GPU, MiB")


def settings_of(option: str, batch_size: int, parts: int) -> dict[str, Any]:
    """The arguments of ``supervise()`` for an option; batches are split into ``parts`` parts."""
    return {
        "plain": {},
        "compile": {"compile": True},
        "micro_batch": {"micro_batch": -(-batch_size // parts)},
        "accumulate": {"accumulate": parts},
        "clip": {"clip": 1.0},
        "average": {"average": 0.999},
    }[option]


def with_options(meter: Meter, setting: Setting, options: dict[str, Any]) -> None:
    """``supervise()`` with further arguments."""
    train(ALGORITHMS[setting.algorithm], meter, setting, **options)


def measure(algorithm: str, options: argparse.Namespace, file: str, deadline: float) -> list[list[Any]]:
    """One row per option, the plain run first."""
    device = pick_device(options.device)
    setting = Setting(algorithm, file, options.backbone, options.batch_size, str(device))
    chosen = [option for option in options.options if not (option == "accumulate" and refuses_parts(algorithm))]
    with contextlib.ExitStack() as stack:
        contestants = []
        for option in ("plain", *chosen):
            arguments = setting, settings_of(option, options.batch_size, options.parts)
            contestants.append(Contestant(option, with_options, arguments, device))
            stack.callback(contestants[-1].close)
        windows = take_turns(contestants, deadline)
        memory = {contestant.name: contestant.finish() for contestant in contestants}
    return rows_of(algorithm, options.batch_size, windows, memory)


def refuses_parts(algorithm: str) -> bool:
    """Whether the loss of an algorithm always compares the images of a batch with each other."""
    return ALGORITHMS[algorithm].compares_images is True


def rows_of(
    algorithm: str, batch_size: int, windows: dict[str, list[Window]], memory: dict[str, dict[str, float | None]]
) -> list[list[Any]]:
    """One row per option: its speed, that divided by the speed of the plain run, and its memory."""
    speeds = {name: rates(own, batch_size) for name, own in windows.items()}
    return [
        [algorithm, name, spread(speed, 1), ratio(speed, speeds["plain"])]
        + [None if memory[name][k] is None else f"{memory[name][k]:,.0f}" for k in ("process", "device")]
        for name, speed in speeds.items()
    ]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", type=listed(str), default=["byol", "rotatenet"])
    parser.add_argument("--options", type=listed(str), default=list(OPTIONS))
    parser.add_argument("--minutes", type=float, default=5.0, help="for all algorithms together, without compilation")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=32, help="size of the training images in pixels")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--parts", type=int, default=4, help="parts of a batch, with micro_batch and accumulate")
    parser.add_argument("--data", help="a folder of images, or a name such as cifar10; default: the photographs")
    parser.add_argument("--write", action="store_true", help="append the table to bench/RESULTS.md")
    options = parser.parse_args(arguments)
    for given, known in ((options.options, OPTIONS), (options.algorithms, ALGORITHMS)):
        if unknown := set(given) - set(known):
            parser.error(f"{', '.join(sorted(unknown))} is unknown; pass some of {', '.join(known)}.")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints, and with ``--write`` appends to RESULTS.md."""
    options = parse(arguments)
    device = pick_device(options.device)
    began = machine(device)
    print(began)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "images.pt")
        torch.save(open_tensor(options.data, options.size, options.batch_size), file)
        end = time.perf_counter() + 60 * options.minutes
        for number, algorithm in enumerate(options.algorithms):
            now = time.perf_counter()
            rows += measure(algorithm, options, file, now + max(0.0, end - now) / (len(options.algorithms) - number))
    text = table(HEAD, rows)
    print("\n" + text)
    if options.write:
        append(section("options", device, command("bench.options", arguments), began, [text]))


if __name__ == "__main__":
    main()
