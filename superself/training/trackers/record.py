"""What a run leaves next to its checkpoint: NAME.yaml about the whole run, NAME.csv with a row per epoch, NAME.skipped.txt."""

from __future__ import annotations

import csv
import datetime
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from superself.training.describe import describe_value, versions
from superself.training.files import write_text
from superself.training.trackers.tracker import Tracker


class Record(Tracker):
    """Writes NAME.yaml, NAME.csv and NAME.skipped.txt. Training never reads them.

    The rows are part of the checkpoint, so that a resumed run writes the table that belongs to it, wherever the run was
    killed. A file that cannot be written, for example on a full disk, does not end the run: it is reported once, written
    with the next epoch, and reported again at the end if it is still missing.

    Args:
        name: the run, "store/base".
    """

    def __init__(self, name: str | Path) -> None:
        self.yaml_path = Path(f"{name}.yaml")
        self.csv_path = Path(f"{name}.csv")
        self.skipped_path = Path(f"{name}.skipped.txt")
        self.rows: dict[int, dict[str, Any]] = {}  # by the number of the epoch; 0 is before the first step
        self.facts: dict[str, Any] = {}  # empty until ``start``
        self.warnings: list[str] = []
        self.missing: dict[Path, OSError] = {}  # files that are not up to date on the disk, with the reason

    def start(self, facts: dict[str, Any]) -> None:
        """Writes the facts, and the rows of epochs that a resumed run has finished."""
        facts = dict(facts)
        self.run = facts.pop("run")
        self.rows = {epoch: row for epoch, row in self.rows.items() if epoch <= self.run.epoch}
        self.facts = {**describe_value(facts), "versions": versions(), "warnings": self.warnings, "start": _now()}
        self.facts.update(end=None, state="running")
        self._write_rows()
        self._write_facts()
        self._write_skipped()

    def baseline(self, row: dict[str, Any]) -> None:
        """Keeps what was measured before the first step as the first row."""
        self.rows[0] = row

    def measure(self, row: dict[str, Any]) -> dict[str, float]:
        """Keeps the row of the epoch, to which other trackers still add values, for the checkpoint that is written next."""
        self.rows[row["epoch"]] = row
        return {}

    def epoch(self, row: dict[str, Any]) -> None:
        """Writes the row of a finished epoch, numbered from 1."""
        self.rows[row["epoch"]] = row
        self._write_rows()
        if self.yaml_path in self.missing:
            self._write_facts()

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
        if self.csv_path in self.missing:
            self._write_rows()
        self._write_facts()
        for path, error in self.missing.items():
            warnings.warn(f"{path} is not complete: it could not be written ({error.strerror or error}).", stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """The rows of finished epochs."""
        return {"rows": self._plain_rows()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues the table of a stored run."""
        self.rows = {row["epoch"]: row for row in state["rows"]}

    def _plain_rows(self) -> list[dict[str, Any]]:
        """Rows in the order of epochs, with numbers and text only."""
        plain = (bool, int, float, str, type(None))
        rows = []
        for _, row in sorted(self.rows.items()):
            values = {name: value for name, value in row.items() if name not in ("step", "seconds_left")}
            values |= {n: v.item() for n, v in values.items() if getattr(v, "ndim", 1) == 0}  # of NumPy or a tensor
            rows.append({name: v if type(v) in plain else str(v) for name, v in values.items()})
        return rows

    def _write_rows(self) -> None:
        rows, text = self._plain_rows(), io.StringIO(newline="")
        epochs_first = sorted(rows, key=lambda row: row["epoch"] == 0)  # row 0 lacks most columns
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in epochs_first for key in row)) or ["epoch"])
        writer.writeheader()
        writer.writerows(rows)
        self._keep(self.csv_path, lambda: write_text(self.csv_path, text.getvalue()))

    def _write_skipped(self) -> None:
        lines = [f"{place}\t{' '.join(reason.split())}\n" for place, reason in sorted(self.run.skipped.items())]
        if lines:
            self._keep(self.skipped_path, lambda: write_text(self.skipped_path, "".join(lines)))
        else:
            self._keep(self.skipped_path, lambda: self.skipped_path.unlink(missing_ok=True))

    def _write_facts(self) -> None:
        text = yaml.safe_dump(self.facts, sort_keys=False, allow_unicode=True)
        self._keep(self.yaml_path, lambda: write_text(self.yaml_path, text))

    def _keep(self, path: Path, write: Callable[[], None]) -> None:
        """Writes a file; a disk that fails is reported once for all files until they are written again."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write()
            self.missing.pop(path, None)
        except OSError as error:
            if not self.missing:
                reason = error.strerror or error
                warnings.warn(
                    f"{path} could not be written ({reason}); training continues and tries again.", stacklevel=4
                )
            self.missing[path] = error


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")
