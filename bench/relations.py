"""Seconds and memory of neighbours, duplicates, outliers and coverage, on features of so many images.

    python -m bench.relations [--images 10000,100000,1000000] [--features 128] [--subset 100] [--device cpu] [--write]

Features are random, around a few hundred centres and a common mean, and one image in a hundred has a near-duplicate. Each
measure runs in a process of its own; memory is the largest that this process had beyond the features and the libraries.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor

from bench.report import append, command, listed, machine, pick_device, section, table
from superself.evaluation import coverage, duplicates, neighbours, outliers

HEAD = ("images", "measure", "seconds", "memory, MiB", "result")
CENTRES = 300


def make_features(images: int, width: int) -> Tensor:
    """Features (N, D) in clusters, of which every hundredth row is a noisy copy of the one before it."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CENTRES, width, generator=generator)
    features = torch.randn(images, width, generator=generator)
    features += 1.0 + centres[torch.randint(CENTRES, (images,), generator=generator)]
    copied = torch.arange(1, images, 100)
    features[copied] = features[copied - 1] + 0.01 * torch.randn(len(copied), width, generator=generator)
    return features


def measure(name: str, images: int, width: int, subset: int, device: torch.device) -> dict[str, Any]:
    """Time, memory and result of one measure, in this process."""
    features = make_features(images, width)
    measures = {
        "neighbours": lambda given: f"{neighbours(given, 10, device=device).cosines[:, 0].mean():.3f} nearest cosine",
        "duplicates": lambda given: f"{len(duplicates(given, device=device))} groups",
        "outliers": lambda given: f"{outliers(given, device=device).scores.median():.3f} median score",
        "coverage": lambda given: f"{coverage(given, subset, device=device).radii[-1]:.3f} radius",
    }
    measures[name](features[: 2 * subset + 100])  # imports and first calls
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    result = measures[name](features)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, "result": result}


def rows(options: argparse.Namespace) -> list[list[Any]]:
    """The rows of the table, each measured in a new process."""
    found, width, subset = [], options.features, options.subset
    for images in options.images:
        for name in ("neighbours", "duplicates", "outliers", "coverage"):
            line = [sys.executable, "-m", "bench.relations", "--one", name, "--device", options.device]
            line += [f"--{key}={value}" for key, value in (("images", images), ("features", width), ("subset", subset))]
            output = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
            found.append([images, name, f"{output['seconds']:.1f}", f"{output['kib'] / 1024:.0f}", output["result"]])
            print(*found[-1], flush=True)
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=listed(int), default=[10_000, 100_000])
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--subset", type=int, default=100)
    parser.add_argument("--device", default="cpu", help='"auto": the GPU if there is one')
    parser.add_argument("--write", action="store_true", help="append to bench/RESULTS.md")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the measure that this process makes
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints, and with ``--write`` appends to RESULTS.md."""
    options = parse(arguments)
    device = pick_device(options.device)
    if options.one:
        print(json.dumps(measure(options.one, options.images[0], options.features, options.subset, device)))
        return
    began = machine(device)
    print(began)
    text = table(HEAD, rows(options))
    print(f"\n{text}")
    if options.write:
        append(section("relations of images", device, command("bench.relations", arguments), began, [text]))


if __name__ == "__main__":
    main()
