"""ExternalTracker: what trackers share that write into another library, and that must not end a run when it fails."""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from superself.training.describe import describe_value, versions
from superself.training.metrics import RESERVED
from superself.training.trackers.tracker import Tracker

FIRST_PAUSE, LONGEST_PAUSE = 60.0, 3600.0  # seconds from an error to the next attempt; doubles
MOST_WAITING = 10_000  # observations that are kept while nothing can be written
SPEED = ("images_per_second", "waiting_share", "seconds", "skipped_steps", "rollbacks")
NOT_HYPER_PARAMETERS = {  # settings that concern where and how a run is computed, and not what is learnt
    *("name", "resume", "overwrite", "progress", "trackers", "evaluators", "save_every", "num_workers", "devices"),
    *("strategy", "num_nodes", "probe", "probe_every", "testdata", "notes", "compile", "on_nan", "keep_best"),
}


class ExternalTracker(Tracker):
    """Base of trackers that write into another library.

    An error there, such as a full disk or a server that is down, does not end the run: it is reported once, and what was
    observed is kept and written later, at the latest at the end (values within epochs are not kept). What is wrong before the
    first step is raised. Only observes: removing it changes no weight.

    A row is written under names with a group: "loss/epoch", "metrics/NAME" (what the algorithm notes), "features/NAME",
    "evaluation/NAME" (what was measured with evaluators or the probe), "optimizer/lr" and "speed/NAME".
    """

    library: ClassVar[str] = ""  # to import, and the name of the extra

    def __init__(self) -> None:
        if importlib.util.find_spec(self.library) is None:
            raise ImportError(
                f"{type(self).__name__} needs {self.library}, which is not installed; "
                f'run: pip install "superself[{self.library}]"'
            )
        self.last: dict[str, float] = {}  # every value of finished epochs, the latest of each name
        self.notes: str | None = None
        self.folder: Path | None = None  # where files are written, if it is on this machine
        self._noted: set[str] = set()  # names that the algorithm notes
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_open = False
        self._pause, self._retry_at = FIRST_PAUSE, 0.0
        self._failed = self._reported = False  # at the last attempt; whether the user knows

    # ---- what a subclass writes --------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Makes whatever the others write to."""

    def _reopen(self) -> None:
        """Makes it again after an error, before the next attempt."""

    def _write_values(self, values: dict[str, float], step: int, epoch: int) -> None:
        """Writes numbers by their names with groups."""

    def _write_figure(self, name: str, path: Path, step: int) -> None:
        """Writes a picture."""

    def _write_warning(self, text: str, step: int) -> None:
        """Writes a sentence on what looks wrong."""

    def _close(self, state: str) -> None:
        """Writes how the run ended, with ``self.last``."""

    # ---- Tracker -----------------------------------------------------------------------------------------------------

    def start(self, facts: dict[str, Any]) -> None:
        """Keeps what is known about the run."""
        facts = dict(facts)
        self.run = facts.pop("run")
        self.facts = {**describe_value(facts), "versions": versions()}
        self.notes = self.facts.get("notes")

    def baseline(self, row: dict[str, Any]) -> None:
        """Writes what was measured before the first step; a resumed run has written it."""
        if not self.run.continues:
            self.epoch({**row, "epoch": 0})

    def measure(self, row: dict[str, Any]) -> dict[str, float]:
        """Keeps the values of the epoch for the checkpoint that is written next."""
        self._noted = set(self.run.metrics.means()) - {"loss"}
        self.last.update(grouped(row, self._noted))
        return {}

    def epoch(self, row: dict[str, Any]) -> None:
        """Writes the values of an epoch; epoch 0 is what was measured before the first step."""
        values, number = grouped(row, self._noted), row["epoch"]
        step = self.run.step if number else 0
        self.last.update(values)
        if number:
            self._begin()
        self._send(lambda: self._write_values(values, step, number))

    def figure(self, name: str, path: Path) -> None:
        """Writes a picture."""
        step = self.run.step
        self._send(lambda: self._write_figure(name, Path(path), step))

    def warn(self, text: str) -> None:
        """Writes a sentence on what looks wrong."""
        step = self.run.step
        self._send(lambda: self._write_warning(text, step))

    def end(self, state: str) -> None:
        """Writes how the run ended, and what could not be written before."""
        self._retry_at = 0.0
        self._send(lambda: self._close(state))
        if self._is_open and self._waiting:
            warnings.warn(
                f"{type(self).__name__}: {len(self._waiting)} observations could not be written and are missing.",
                stacklevel=2,
            )
        self._waiting.clear()

    def state_dict(self) -> dict[str, Any]:
        """The latest values."""
        return {"last": dict(self.last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from stored values."""
        self.last = dict(state.get("last", {}))

    # ---- writing that may fail ---------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """From now on observations are written: the run has done a step, so that earlier runs have been moved away."""
        if not self._is_open:
            self._is_open = True
            self._waiting.appendleft(self._open)

    def _send(self, write: Callable[[], None], keep: bool = True) -> None:
        """Writes what waits, and then this; keeps it for later if that is not possible now."""
        can_write = self._is_open and time.monotonic() >= self._retry_at
        if (keep or can_write) and len(self._waiting) < MOST_WAITING:
            self._waiting.append(write)
        if not can_write:
            return
        try:
            if self._failed:
                self._reopen()
                self._failed = False
            while self._waiting:
                self._waiting[0]()
                self._waiting.popleft()
            self._pause = FIRST_PAUSE
        except Exception as error:
            self._failed = True
            if not keep and self._waiting and self._waiting[-1] is write:
                self._waiting.pop()
            self._retry_at = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            if not self._reported:
                self._reported = True
                reason = getattr(error, "strerror", None) or error or type(error).__name__
                warnings.warn(
                    f"{type(self).__name__} could not write ({reason}); training continues and it tries again.",
                    stacklevel=4,
                )


def grouped(row: dict[str, Any], noted: set[str]) -> dict[str, float]:
    """The numbers of an epoch's row under names with groups; with the spread (std / uniform std) of what is measured.

    Args:
        row: of an epoch, from ``Run``.
        noted: names that the algorithm notes, which are metrics; other unknown names come from evaluators.
    """
    values = {}
    for name, value in row.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        if name == "loss":
            values["loss/epoch"] = value
        elif name == "lr":
            values["optimizer/lr"] = value
        elif name in SPEED:
            values[f"speed/{name}"] = value
        elif name.startswith(("feature_", "embedding_")) and name not in noted:
            if not name.endswith("_std_uniform"):
                values[f"features/{name}"] = value
        elif name == "knn" or name not in RESERVED:
            values[f"metrics/{name}" if name in noted else f"evaluation/{name}"] = value
    for kind in ("feature", "embedding"):
        if row.get(f"{kind}_std") is not None and row.get(f"{kind}_std_uniform"):
            values[f"features/{kind}_spread"] = row[f"{kind}_std"] / row[f"{kind}_std_uniform"]
    return values


def grouped_within_epoch(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a step's row: means of the epoch so far, and the learning rate."""
    means = {n: v for n, v in row.items() if n not in RESERVED and isinstance(v, (int, float))}
    return {
        "loss/step": row["loss"],
        **{f"metrics/{name}/step": value for name, value in means.items()},
        "optimizer/lr": row["lr"],
    }


def parameters(facts: dict[str, Any]) -> dict[str, Any]:
    """Algorithm, arguments and settings of a run in one flat dictionary of plain values, without those that are None.

    Args:
        facts: as ``ExternalTracker.start`` keeps them.
    """
    flat = {name: facts[name] for name in ("algorithm", "seed", "precision") if name in facts}
    for part in ("settings", "arguments"):
        for name, value in flattened(facts.get(part) or {}).items():
            if (
                name in ("seed", "precision") and part == "settings"
            ):  # as given, while the facts have the value that is used
                continue
            flat[f"{part}.{name}" if name in flat else name] = value
    return {name: value for name, value in flat.items() if value is not None}


def hyper_parameters(facts: dict[str, Any]) -> dict[str, Any]:
    """Those of ``parameters`` that may change what is learnt, without options that are off."""
    values = {n: v for n, v in parameters(facts).items() if n.split(".")[0] not in NOT_HYPER_PARAMETERS}
    return {name: value for name, value in values.items() if value is not False and (name, value) != ("accumulate", 1)}


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A dictionary of dictionaries as one, with names such as "augment.strength"; lists become text."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if value is None or isinstance(value, (bool, int, float)) else str(value)
    return flat
