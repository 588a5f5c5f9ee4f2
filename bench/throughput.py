"""Speed: views of a recipe, training steps of BYOL, their upper limit, and memory; superself, lightly and torchvision in turn.

    python -m bench.throughput [--parts views,steps,memory] [--minutes 5] [--device auto] [--size 32] [--write]
    python -m bench.throughput --data dataset/cifar10/train --minutes 15   on your own folder of images

views    of SimCLR's recipe: superself in batches on the device; the others image by image, in one worker per core
steps    images per second in the training loop: ``supervise()`` on images in memory; the limit, which is the same without
         loading data and making views; lightly's modules in the loop of its documentation, in float32 and in our precision
memory   peak memory of a contestant's process, additional memory of its workers, and peak memory on the GPU

All figures of a table come from one run in which the contestants take turns, A B C A B C ...; each contestant of "steps" has a
separate process that is stopped between its turns. Figures are medians of the turns (smallest - largest).
"""

from __future__ import annotations

import argparse
import contextlib
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from bench import peers, views
from bench.contestants import Setting, lightly, limit, ours
from bench.report import CORES, append, command, listed, machine, pick_device, ratio, section, spread, table
from bench.turns import Contestant, Window, between_epochs, rates, take_turns
from superself.algorithms import ALGORITHMS
from superself.data import open_images, photos
from superself.training import choose_precision

PARTS = ("views", "steps", "memory")
VIEW_SIZES = (32, 96, 224)
WEIGHT = 5  # a backbone gets this many times as much time as a size of views
VIEWS_HEAD = ("pixels", "SimCLR views", "views/s", "ours is x times", "CPU us a view")
STEPS_HEAD = ("BYOL", "contestant", "precision", "images/s", "ours is x times", "of the limit", "between epochs, s")
MEMORY_HEAD = ("BYOL", "contestant", "process, MiB", "+ workers, MiB", "GPU, MiB")


def measure_views(size: int, device: torch.device, deadline: float) -> list[list[Any]]:
    """Rows of the table of views, from as many rounds as fit before the deadline, at least one."""
    images = photos("train", views.SOURCE.get(size, size), 256).sample(256)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    views.BATCH.setdefault(size, 128)
    mine = views.Ours(images, size, str(device), CORES)
    mine.rate()
    mine.calls = max(mine.calls, math.ceil(0.5 * mine.rate() / len(mine.images)))  # half a second per turn
    contestants = {
        "superself": mine,
        "torchvision v2, bytes": views.PerImage(list(images), views.torchvision_simclr(size), 1, size),
        "torchvision v2, Pillow": views.PerImage(pictures, views.torchvision_simclr(size), 1, size),
    }
    if peers.has_lightly():
        contestants["lightly, Pillow"] = views.PerImage(pictures, views.lightly_simclr(size), 2, size)
    speeds, costs = ({name: [] for name in contestants} for _ in range(2))
    longest = 0.0
    while not longest or time.perf_counter() + longest <= deadline:
        began = time.perf_counter()
        for name, contestant in contestants.items():
            speeds[name].append(contestant.rate())
            costs[name].append(1e6 * contestant.cpu_cost())
        longest = max(longest, time.perf_counter() - began)
    return view_rows(size, speeds, costs)


def view_rows(size: int, speeds: dict[str, list[float]], costs: dict[str, list[float]]) -> list[list[Any]]:
    """One row per contestant; the first one is superself."""
    first = next(iter(speeds.values()))
    return [
        [size, name, spread(speed), ratio(first, speed), spread(costs[name]).split(" ")[0]]
        for name, speed in speeds.items()
    ]


def line_up(setting: Setting, device: torch.device) -> Iterator[tuple[str, str, Any, tuple]]:
    """Name, precision, loop and arguments of each contestant."""
    supervisor = ALGORITHMS[setting.algorithm](setting.load()[:2], backbone=setting.backbone)
    precision = choose_precision("auto", device, supervisor)
    yield "superself", precision, ours, (setting,)
    yield "limit", precision, limit, (setting,)
    if peers.has_lightly():
        yield "lightly", "32-true", lightly, (setting, False)
        if precision != "32-true":
            yield "lightly, autocast", precision, lightly, (setting, True)


def measure_steps(setting: Setting, device: torch.device, deadline: float) -> tuple[list[list], list[list]]:
    """Rows of the tables of steps and of memory for one backbone."""
    lined_up, precisions = [], {}
    with contextlib.ExitStack() as stack:
        for name, precision, loop, arguments in line_up(setting, device):
            contestant = Contestant(name, loop, arguments, device)
            stack.callback(contestant.close)
            lined_up.append(contestant)
            precisions[name] = precision
        windows = take_turns(lined_up, deadline)
        memory = {contestant.name: contestant.finish() for contestant in lined_up}
    return step_rows(setting, precisions, windows), memory_rows(setting.backbone, memory)


def step_rows(setting: Setting, precisions: dict[str, str], windows: dict[str, list[Window]]) -> list[list[Any]]:
    """One row per contestant: its speed, that of superself divided by it, and it divided by the limit."""
    speeds = {name: rates(own, setting.batch_size) for name, own in windows.items()}
    return [
        [
            setting.backbone,
            name,
            precisions[name],
            spread(speed, 0 if max(speed, default=0) >= 100 else 1),
            ratio(speeds["superself"], speed),
            ratio(speed, speeds["limit"]),
            between_epochs(windows[name]),
        ]
        for name, speed in speeds.items()
    ]


def memory_rows(backbone: str, memory: dict[str, dict[str, float | None]]) -> list[list[Any]]:
    """One row per contestant."""
    return [
        [backbone, name, *(None if own[k] is None else f"{own[k]:,.0f}" for k in ("process", "workers", "device"))]
        for name, own in memory.items()
    ]


def open_tensor(data: str | None, size: int, batch_size: int) -> torch.Tensor:
    """The images of a folder or of a named data set as one tensor; of the bundled photographs if ``data`` is None.

    Raises:
        ValueError: if there are fewer than three batches.
    """
    images = photos("train", size) if data is None else open_images(data, image_size=size)
    if len(images) < 3 * batch_size:
        raise ValueError(
            f"{len(images)} images are fewer than three batches of {batch_size}; pass --batch-size {len(images) // 3} or less."
        )
    return images.load().batch(range(len(images))).images


def run(options: argparse.Namespace) -> list[str]:
    """Measures all parts within the time and returns the tables as text."""
    end, device = time.perf_counter() + 60 * options.minutes, pick_device(options.device)
    sizes = options.view_sizes if "views" in options.parts else []
    backbones = options.backbones if {"steps", "memory"} & set(options.parts) else []
    left = len(sizes) + WEIGHT * len(backbones)
    tables, step_table, memory_table = [], [], []

    def deadline(weight: int) -> float:
        nonlocal left
        now, share = time.perf_counter(), weight / left
        left -= weight
        return now + share * (end - now)

    view_table = [row for size in sizes for row in measure_views(size, device, deadline(1))]
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "images.pt")
        if backbones:
            torch.save(open_tensor(options.data, options.size, options.batch_size), file)
        for backbone in backbones:
            setting = Setting("byol", file, backbone, options.batch_size, str(device))
            steps, memory = measure_steps(setting, device, deadline(WEIGHT))
            step_table += steps
            memory_table += memory
    for part, head, rows in (
        ("views", VIEWS_HEAD, view_table),
        ("steps", (f"BYOL, {options.size} px", *STEPS_HEAD[1:]), step_table),
        ("memory", (f"BYOL, {options.size} px", *MEMORY_HEAD[1:]), memory_table),
    ):
        if part in options.parts:
            tables.append(table(head, rows))
    return tables


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", type=listed(str), default=list(PARTS), help="views, steps, memory; separated by commas"
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="for all parts together; 15 for slow steps")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", type=int, default=32, help="size of the training images in pixels")
    parser.add_argument("--view-sizes", type=listed(int), default=list(VIEW_SIZES))
    parser.add_argument("--backbones", type=listed(str), default=["mobilenet_v3_small", "resnet18"])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--data", help="a folder of images, or a name such as cifar10; default: the photographs")
    parser.add_argument("--write", action="store_true", help="append the tables to bench/RESULTS.md")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; pass some of {', '.join(PARTS)}.")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints, and with ``--write`` appends to RESULTS.md."""
    options = parse(arguments)
    device = pick_device(options.device)
    began = machine(device)
    print(began)
    if not peers.has_lightly():
        print(peers.MISSING)
    tables = run(options)
    print("\n" + "\n\n".join(tables))
    if options.write:
        append(section("throughput", device, command("bench.throughput", arguments), began, tables))


if __name__ == "__main__":
    main()
