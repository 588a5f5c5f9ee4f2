"""What a run leaves next to its checkpoint: NAME.yaml about the whole run, NAME.csv with a row per epoch, NAME.skipped.txt."""

from __future__ import annotations

import csv
import datetime
from pathlib import Path
from typing import Any

import yaml

from superself.training.describe import describe_value, versions
from superself.training.trackers.tracker import Tracker


class Record(Tracker):
    """Writes NAME.yaml, NAME.csv and NAME.skipped.txt. Training never reads them.

    Args:
        name: the run, "store/base".
    """

    def __init__(self, name: str | Path) -> None:
        self.yaml_path = Path(f"{name}.yaml")
        self.csv_path = Path(f"{name}.csv")
        self.skipped_path = Path(f"{name}.skipped.txt")
        self.rows: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}  # empty until ``start``
        self.warnings: list[str] = []

    def start(self, facts: dict[str, Any]) -> None:
        """Writes the facts; rows of epochs that a resumed run has finished are kept."""
        self.yaml_path.parent.mkdir(parents=True, exist_ok=True)
        facts = dict(facts)
        self.run = facts.pop("run")
        self.rows = self._stored_rows(self.run.epoch)
        self._write_rows()
        self.facts = {**describe_value(facts), "versions": versions(), "warnings": self.warnings, "start": _now()}
        self.facts.update(end=None, state="running")
        self._write_facts()
        self._write_skipped()

    def epoch(self, row: dict[str, Any]) -> None:
        """Adds the row of a finished epoch, numbered from 1."""
        self.rows.append({name: value for name, value in row.items() if name not in ("step", "seconds_left")})
        self._write_rows()

    def warn(self, text: str) -> None:
        """Notes a sentence on what looks wrong."""
        self.warnings.append(text)
        if self.facts:
            self._write_facts()

    def end(self, state: str) -> None:
        """Notes how the run ended, and the images that could not be read."""
        if not self.facts:  # no step has succeeded: an earlier run keeps its files
            return
        self._write_skipped()
        self.facts.update(end=_now(), state=state)
        self._write_facts()

    def _stored_rows(self, finished_epochs: int) -> list[dict[str, Any]]:
        if not finished_epochs or not self.csv_path.is_file():
            return []
        try:
            with self.csv_path.open(newline="", encoding="utf-8") as file:
                rows = [{key: value for key, value in row.items() if key is not None} for row in csv.DictReader(file)]
        except (csv.Error, UnicodeDecodeError):  # someone else's file, or a damaged one
            return []
        return [row for row in rows if (row.get("epoch") or "").isdecimal() and int(row["epoch"]) <= finished_epochs]

    def _write_rows(self) -> None:
        columns = list(dict.fromkeys(key for row in self.rows for key in row)) or ["epoch"]
        with self.csv_path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def _write_skipped(self) -> None:
        lines = [f"{place}\t{' '.join(reason.split())}\n" for place, reason in sorted(self.run.skipped.items())]
        if lines:
            self.skipped_path.write_text("".join(lines))
        else:
            self.skipped_path.unlink(missing_ok=True)

    def _write_facts(self) -> None:
        self.yaml_path.write_text(yaml.safe_dump(self.facts, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
