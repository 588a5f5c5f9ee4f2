"""Tables of measurements, and the sections of bench/RESULTS.md that are made of them."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from superself.data.sources import available_cores

RESULTS = Path(__file__).parent / "RESULTS.md"
CORES = available_cores()
PACKAGES = ("torch", "torchvision", "lightly", "numpy", "Pillow")


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median and range, for example ``1,204 (1,180 - 1,230)``; a dash if nothing was measured."""
    if not values:
        return "-"
    middle, low, high = (f"{x:,.{digits}f}" for x in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} - {high})"


def ratio(values: Sequence[float], others: Sequence[float]) -> float | None:
    """The median of ``values`` over that of ``others``, or None if one is empty."""
    return statistics.median(values) / statistics.median(others) if values and others else None


def show(value: Any) -> str:
    """The text of a cell: floats with two decimals, None as a dash."""
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table; the first column is aligned left, the others right."""
    cells = [list(columns), *([show(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [" | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in cells]
    rule = " | ".join("-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths))
    return "\n".join(f"| {line} |" for line in [lines[0], rule, *lines[1:]])


def listed(kind: Callable[[str], Any]) -> Callable[[str], list]:
    """A parser of options whose values are separated by commas."""
    return lambda text: [kind(word) for word in text.split(",") if word]


def pick_device(name: str) -> torch.device:
    """The device of this name; "auto" is the GPU if there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def machine(device: torch.device) -> str:
    """One line: GPU, processor, cores, versions, and the load of the machine when the run began."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    load = f"load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    threads = f"{torch.get_num_threads()} threads"
    return (
        f"{gpu}{processor()}, {CORES} cores, {threads}; Python {platform.python_version()}, {', '.join(found)}; {load}"
    )


def processor() -> str:
    """Name of the processor and its vector instructions, which say whether it computes in bfloat16."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)  # of the first core
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = set(facts.get("flags", "").split()) & {"avx512_bf16", "amx_bf16", "avx512f", "avx2"}
    return f"{facts.get('model name', platform.machine())} ({', '.join(sorted(flags)) or 'no vector flags'})"


def commit() -> str:
    """The commit of this checkout, followed by "+" if files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=8"]
    try:
        return subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or a copy without its history
        return "an unknown commit"


def section(title: str, device: torch.device, command: Sequence[str], facts: str, tables: Sequence[str]) -> str:
    """A dated section: title, machine (``facts``, from ``machine``), command and tables."""
    today = datetime.datetime.now().astimezone().date().isoformat()
    head = f"## {today}: {title} on {device.type}\n\n{facts}; superself at {commit()}.\n\n    {shlex.join(command)}"
    return "\n\n".join([head, *tables]) + "\n"


def command(module: str, arguments: Sequence[str] | None) -> list[str]:
    """The command line of this run."""
    return ["python", "-m", module, *(sys.argv[1:] if arguments is None else arguments)]


def append(text: str, path: Path | None = None) -> None:
    """Adds a section at the end of RESULTS.md."""
    path = path or RESULTS
    before = path.read_text().rstrip() + "\n\n" if path.exists() else ""
    path.write_text(before + text.rstrip() + "\n")
