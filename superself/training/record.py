"""What a run leaves beside its checkpoint: NAME.yaml for the whole of it, NAME.csv with a row an epoch, NAME.skipped.txt."""

from __future__ import annotations

import csv
import datetime
import platform
from pathlib import Path
from typing import Any

import torch
import torchvision
import yaml
from torch import nn

from superself.version import __version__


def versions() -> dict[str, str]:
    """Of what decides a result: this package, Python, torch, torchvision, and the machine's kind."""
    return {
        "superself": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a subclass of str, which no file needs to know
        "torchvision": str(torchvision.__version__),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def describe_value(value: Any) -> Any:
    """``value`` in words and numbers that YAML can hold: classes and functions by name, modules by class."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(k): describe_value(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and len(value) <= 100:
        return [describe_value(v) for v in value]
    if isinstance(value, (nn.Module, torch.utils.data.Dataset)):
        return f"{type(value).__module__}.{type(value).__qualname__} object"
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "shape"):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return f"{type(value).__name__} object"


class RunRecord:
    """Writes NAME.yaml, NAME.csv and NAME.skipped.txt; the run goes on without them, they only tell what it did.

    Args:
        name: the run, "store/base".
        facts: what NAME.yaml says of it: arguments, data, seed.
        finished_epochs: rows of NAME.csv that are kept (when a run is resumed); 0 starts the file anew.
    """

    def __init__(self, name: str | Path, facts: dict[str, Any], finished_epochs: int = 0) -> None:
        self.yaml_path = Path(f"{name}.yaml")
        self.csv_path = Path(f"{name}.csv")
        self.skipped_path = Path(f"{name}.skipped.txt")
        self.yaml_path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = self._kept_rows(finished_epochs)
        self._write_rows()
        self.facts = {**describe_value(facts), "versions": versions(), "said": [], "start": _now()}
        self.facts.update(end=None, state="running")
        self._write_facts()

    def _kept_rows(self, finished_epochs: int) -> list[dict[str, Any]]:
        if not finished_epochs or not self.csv_path.is_file():
            return []
        with self.csv_path.open(newline="") as file:
            return [row for row in csv.DictReader(file) if int(row["epoch"]) <= finished_epochs]

    def add_epoch(self, row: dict[str, Any]) -> None:
        """Adds the row of a finished epoch, numbered from 1."""
        self.rows.append(row)
        self._write_rows()

    def say(self, sentence: str) -> None:
        """Notes a sentence on what looks wrong."""
        self.facts["said"].append(sentence)
        self._write_facts()

    def skip(self, broken: dict[str, str]) -> None:
        """Lists images that could not be read, with the reason, in NAME.skipped.txt; no file where there are none."""
        lines = [f"{place}\t{' '.join(reason.split())}\n" for place, reason in sorted(broken.items())]
        if lines:
            self.skipped_path.write_text("".join(lines))
        else:
            self.skipped_path.unlink(missing_ok=True)

    def end(self, state: str) -> None:
        """Notes how the run ended: "finished", "interrupted", or what stopped it."""
        self.facts.update(end=_now(), state=state)
        self._write_facts()

    def _write_rows(self) -> None:
        columns = list(dict.fromkeys(key for row in self.rows for key in row)) or ["epoch"]
        with self.csv_path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def _write_facts(self) -> None:
        self.yaml_path.write_text(yaml.safe_dump(self.facts, sort_keys=False, allow_unicode=True))


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
