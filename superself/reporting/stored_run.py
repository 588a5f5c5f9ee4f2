"""A run as its text files tell of it: NAME.yaml and NAME.csv; the checkpoint is not opened."""

from __future__ import annotations

import csv
import datetime
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from superself.training.lock import is_running

COLUMNS = (
    "name",
    "method",
    "data",
    "date",
    "state",
    "epoch",
    "epochs",
    "loss",
    "chance_loss",
    "minutes",
    "images_per_second",
)
OWN_MODULES = "superself.algorithms."  # whose files have the registered names
LARGEST_YAML = 2**20  # bytes; larger files are not of a run
DEEPEST_YAML = 50  # levels; a record has about five
LARGEST_EPOCH = 2**53
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # several times as fast


@dataclass(frozen=True, eq=False)
class StoredRun:
    """A stored run.

    ``run["knn"]`` is the value of a column of the table, else the last one in NAME.csv, else an argument or setting
    ("temperature", "settings.lr"); None if there is none.

    Args:
        name: of the run, as ``load`` takes it.
        facts: the content of NAME.yaml.
        rows: those of NAME.csv, in its order: numbers, texts, and None for empty cells.
    """

    name: str
    facts: dict[str, Any]
    rows: list[dict[str, Any]]

    def __getitem__(self, key: str) -> Any:
        if key in COLUMNS:
            return getattr(self, key)
        measured = self.series(key)
        if measured:
            return measured[-1]
        flat = self.flat
        for candidate in (key, f"arguments.{key}", f"settings.{key}"):
            if candidate in flat:
                return flat[candidate]
        return None

    @property
    def method(self) -> str:
        """The registered name of the algorithm ("simclr"), or the name of your own class."""
        name, module = str(self.facts["algorithm"]), self.facts.get("module")
        if module is None:  # of an earlier version
            return name.removesuffix("Supervisor").lower()
        return module.rpartition(".")[2] if str(module).startswith(OWN_MODULES) else name

    @property
    def data(self) -> str:
        """Number and size of the images, as in "4864 of 32 x 32"."""
        text = str(self.facts.get("data") or "")
        used, size = re.search(r"(\d+) used", text), re.search(r"\d+ x \d+(?= pixels)", text)
        stored = re.search(r"(?<=stored as )\d+ x \d+", text) or size
        return f"{used[1]} of {stored[0]}" if used and stored else text[:30]

    @property
    def date(self) -> str:
        """When it was started, to the minute, in the time zone of the run."""
        return str(self.facts.get("start") or "")[:16].replace("T", " ")

    @cached_property
    def state(self) -> str:
        """How it ended, or "running"; "killed" if the file says that it is running and no process holds its lock."""
        state = str(self.facts.get("state") or "unknown")
        return "killed" if state == "running" and not is_running(self.name) else state

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return int(max(self.series("epoch"), default=0))

    @property
    def epochs(self) -> int | None:
        """Number of epochs that the run was to have."""
        found = self.facts.get("epochs")
        return found if isinstance(found, int) else None

    @property
    def loss(self) -> float | None:
        """That of the last epoch."""
        return next(reversed(self.series("loss")), None)

    @property
    def chance_loss(self) -> float | None:
        """Loss at chance level, where the method has one."""
        return next(reversed(self.series("chance_loss")), None)

    @property
    def minutes(self) -> float | None:
        """Time of the finished epochs, those before an interruption included."""
        seconds = self.series("seconds")
        if seconds:
            return sum(seconds) / 60
        try:
            begin, end = (datetime.datetime.fromisoformat(str(self.facts.get(key))) for key in ("start", "end"))
            return (end - begin).total_seconds() / 60
        except (TypeError, ValueError):  # one of them is missing
            return None

    @property
    def images_per_second(self) -> float | None:
        """Mean over the epochs."""
        speeds = self.series("images_per_second")
        return sum(speeds) / len(speeds) if speeds else None

    def series(self, key: str) -> list[float]:
        """The numbers in a column of NAME.csv, without empty cells; the first may be that before training, in epoch 0."""
        return [row[key] for row in self.rows if isinstance(row.get(key), (int, float))]

    def gain(self, key: str) -> float | None:
        """The last number in a column of NAME.csv minus that before training; None if that was not measured."""
        if not self.rows or self.rows[0].get("epoch") != 0 or not isinstance(self.rows[0].get(key), (int, float)):
            return None
        return self.series(key)[-1] - self.rows[0][key]

    @cached_property
    def flat(self) -> dict[str, Any]:
        """The facts with dotted names: {"settings.lr": 0.001, ...}."""
        return flatten(self.facts)


def flatten(value: dict[str, Any], before: str = "") -> dict[str, Any]:
    """A nested dictionary as one with dotted names."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        found.update(flatten(item, f"{before}{key}.") if isinstance(item, dict) and item else {f"{before}{key}": item})
    return found


def read_run(path: Path) -> StoredRun | None:
    """The run whose NAME.yaml is at ``path``; None if that is another file.

    Raises:
        OSError, ValueError: if it begins like the file of a run and cannot be read.
    """
    if path.stat().st_size > LARGEST_YAML:
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    if not re.search(r"^algorithm:", text, re.MULTILINE):
        return None
    facts = read_facts(path, text)
    if not isinstance(facts, dict) or not isinstance(facts.get("algorithm"), str):
        raise ValueError("names no algorithm")
    return StoredRun(str(path.with_suffix("")), facts, read_rows(path.with_suffix(".csv")))


def read_facts(path: Path, text: str) -> Any:
    """What the text of a NAME.yaml holds; aliases and deep nesting, which can exhaust the memory, are refused.

    Raises:
        ValueError: if it cannot be read.
    """
    depth = 0
    try:
        for event in yaml.parse(text, _Loader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it has an alias, and records of runs have none")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST_YAML:
                raise ValueError(f"it is nested more than {DEEPEST_YAML} deep")
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is damaged: not valid YAML ({getattr(error, 'problem', None) or error}).") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of NAME.csv with numbers as numbers and empty cells as None; none if there is no such file yet.

    Raises:
        ValueError: if it is not a table, or an epoch in it is not a finite number.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        try:
            rows = list(csv.DictReader(file))
        except csv.Error as error:
            raise ValueError(f"{path} is damaged: not a table ({error}).") from error
    found = [{name: _value(cell) for name, cell in row.items() if name} for row in rows]
    for row in found:
        epoch = row.get("epoch")
        if epoch is not None and not (isinstance(epoch, (int, float)) and 0 <= epoch <= LARGEST_EPOCH):
            raise ValueError(f"{path} is damaged: it has the epoch {str(epoch)[:40]!r}.")
    return found


def _value(cell: str | None) -> Any:
    if not cell:
        return None
    try:
        return int(cell) if cell.isdecimal() and len(cell) < 16 else float(cell)
    except ValueError:
        return cell
