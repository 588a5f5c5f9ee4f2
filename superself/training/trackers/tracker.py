"""Tracker: the interface of everything that observes a run."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class Tracker:
    """Observes a run; removing it changes no weight. Override what you need, and pass it as ``trackers=[...]``.

    A row is a dictionary of plain numbers: epoch, step, loss, chance_loss, lr, images_per_second, waiting_share, seconds,
    whatever the algorithm noted, and at the end of an epoch what was measured on the features. An exception in a tracker ends
    the run once it is stored.
    """

    def start(self, facts: dict[str, Any]) -> None:
        """Before the first step: what is about to run, in words and numbers, and under "run" the Run itself."""

    def baseline(self, row: dict[str, Any]) -> None:
        """Before the first step of a new run with evaluators: row 0 of NAME.csv, with epoch 0 and what they measured, no loss."""

    def step(self, row: dict[str, Any]) -> None:
        """A few times a second: the means of the epoch so far."""

    def measure(self, row: dict[str, Any]) -> dict[str, float]:
        """At the end of an epoch, before it is stored: values to add to its row."""
        return {}

    def epoch(self, row: dict[str, Any]) -> None:
        """After an epoch was stored: its row of NAME.csv."""

    def figure(self, name: str, path: Path) -> None:
        """A picture was written."""

    def warn(self, text: str) -> None:
        """A sentence on what looks wrong."""

    def end(self, state: str) -> None:
        """After the last step: "finished", "interrupted" or "stopped by an error"."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know, as tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where ``state_dict`` left off."""


def end_all(trackers: Iterable[Tracker], state: str, run_failed: bool) -> None:
    """Calls ``end`` of every tracker, also if one fails; raises its error unless that of the run is the one to show."""
    errors = []
    for tracker in trackers:
        try:
            tracker.end(state)
        except Exception as error:
            errors.append(error)
            if run_failed or len(errors) > 1:
                warnings.warn(f"{type(tracker).__name__}.end() failed: {error!r}", stacklevel=3)
    if errors and not run_failed:
        raise errors[0]
