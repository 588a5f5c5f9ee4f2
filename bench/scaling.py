"""Scaling: images per second of 1 and more processes, as a fraction of the ideal, and what they send on paper.

    python -m bench.scaling [--processes 1,2] [--algorithms rotatenet,moco] [--steps 30] [--batch-size 32] [--write]

Each process computes with one thread and ``--batch-size`` images per step, on the CPU or on its own accelerator. The ideal is
the speed of one process times their number; it needs as many free cores or accelerators as processes. Figures are medians of
the rounds (smallest - largest), in which the numbers of processes take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from bench.report import append, command, listed, machine, pick_device, section, spread, table
from superself.algorithms import ALGORITHMS
from superself.data import photos
from superself.networks import FeatureQueue, MemoryBank

WARM_UP = 5  # steps before the clock starts
SPEED_HEAD = ("algorithm", "processes", "images/s", "of the ideal")
PAPER_HEAD = ("algorithm", "parameters, MB", "processes", "gradients, MB", "embeddings, MB", "at 10 GB/s, ms")
FLOAT, PLACE = 4, 8  # bytes


def bytes_per_step(parameters: int, row_bytes: int, batch_size: int, processes: int) -> tuple[float, float]:
    """What each process sends in one step: for the mean of the gradients, and to gather the rows of the others.

    A ring sends each gradient 2 (n - 1) / n times, and each row n - 1 times.

    Args:
        parameters: numbers that are trained.
        row_bytes: of one image in all queues and banks; see ``gathered_bytes``.
        batch_size: of one process.
        processes: n.
    """
    others = processes - 1
    return 2 * others / processes * FLOAT * parameters, float(others * batch_size * row_bytes)


def gathered_bytes(supervisor: Any) -> int:
    """Bytes of one image that every process gets from all others: its embeddings for queues and banks, and its place."""
    memories = [module for module in supervisor.modules() if isinstance(module, (FeatureQueue, MemoryBank))]
    return sum(FLOAT * memory.features.shape[1] + PLACE for memory in memories)


def paper_rows(name: str, supervisor: Any, batch_size: int, numbers: tuple[int, ...] = (2, 8, 64)) -> list[list[Any]]:
    """Rows of the table of what is sent."""
    parameters = sum(p.numel() for p in supervisor.parameters() if p.requires_grad)
    rows = []
    for processes in numbers:
        gradients, embeddings = bytes_per_step(parameters, gathered_bytes(supervisor), batch_size, processes)
        milliseconds = (gradients + embeddings) / 10e9 * 1e3
        size = f"{FLOAT * parameters / 1e6:.1f}"
        rows.append([name, size, processes, f"{gradients / 1e6:.1f}", f"{embeddings / 1e6:.2f}", f"{milliseconds:.2f}"])
    return rows


def make(name: str, size: int, count: int) -> Any:
    """A supervisor on photographs of ``size`` pixels."""
    images = photos("train", size, count).sample(count)
    return ALGORITHMS[name](images, backbone="mobilenet_v3_small", seed=0)


def work(options: argparse.Namespace) -> None:
    """One process of a measurement: trains, and process 0 prints the speed of all."""
    torch.set_num_threads(1)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    steps = WARM_UP + options.steps
    supervisor = make(options.algorithms[0], options.size, 256)
    began: list[float] = []
    supervisor.register_forward_pre_hook(lambda *_: began.append(time.perf_counter()))
    batch_size = options.batch_size * processes
    epochs = -(-(steps + 1) // -(-256 // batch_size))
    with tempfile.TemporaryDirectory() as folder:
        supervisor.supervise(batch_size=batch_size, epochs=epochs, name=Path(folder) / "run", progress=False)
    seconds = statistics.median(after - before for before, after in pairwise(began[WARM_UP:]))
    if int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps(batch_size / seconds), flush=True)


def measure(name: str, processes: int, options: argparse.Namespace) -> float:
    """Images per second of several processes, which torchrun starts."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}"]
    arguments = ["-m", "bench.scaling", "--work", "--algorithms", name, "--steps", str(options.steps)]
    arguments += ["--batch-size", str(options.batch_size), "--size", str(options.size)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*launcher, *arguments], env=environment, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{processes} processes of {name} failed:\n{run.stderr[-3000:]}")
    return json.loads(run.stdout.strip().splitlines()[-1])


def speed_rows(name: str, speeds: dict[int, list[float]]) -> list[list[Any]]:
    """Rows of the table of speeds; the ideal is the first number's speed per process."""
    first, alone = next(iter(speeds.items()))
    ideal = statistics.median(alone) / first
    return [
        [name, count, spread(speed), f"{statistics.median(speed) / (count * ideal):.0%}"]
        for count, speed in speeds.items()
    ]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=listed(int), default=[1, 2])
    parser.add_argument("--algorithms", type=listed(str), default=["rotatenet", "moco"])
    parser.add_argument("--steps", type=int, default=30, help="measured steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32, help="of each process")
    parser.add_argument("--size", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--write", action="store_true", help="append the tables to bench/RESULTS.md")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints, and with ``--write`` appends to RESULTS.md."""
    options = parse(arguments)
    if options.work:
        return work(options)
    device = pick_device("auto")
    began = machine(device)
    print(began)
    speeds_of = {name: {count: [] for count in options.processes} for name in options.algorithms}
    for _ in range(options.rounds):
        for name, speeds in speeds_of.items():
            for count in options.processes:
                speeds[count].append(measure(name, count, options))
    measured = [row for name, speeds in speeds_of.items() for row in speed_rows(name, speeds)]
    on_paper = [
        row for name in ALGORITHMS for row in paper_rows(name, make(name, options.size, 64), options.batch_size)
    ]
    tables = [table(SPEED_HEAD, measured), table(PAPER_HEAD, on_paper)]
    print("\n" + "\n\n".join(tables))
    if options.write:
        append(section("scaling", device, command("bench.scaling", arguments), began, tables))


if __name__ == "__main__":
    main()
