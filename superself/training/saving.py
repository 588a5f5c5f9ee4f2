"""What a run does around saving: between two steps, after a signal, with a full disk, and where weights are not finite."""

from __future__ import annotations

import time
import warnings
from typing import Any

from superself.training.checkpoint import archive
from superself.training.files import discard_additions
from superself.training.trackers import Record


class Saving:
    """The part of Run that decides when ``save`` is called and what follows if it fails; see Run for the attributes."""

    def _start_record(self) -> None:
        """Moves the run of this name out of the way and starts the record, not before a step of this run has succeeded."""
        if self._recording:
            return
        self._recording = True
        if self.parallel.is_first and not (self.continues or self.settings.overwrite):
            archive(self.name)
        elif self.parallel.is_first and not self.continues:
            discard_additions(self.name)
        for tracker in self.trackers:
            if isinstance(tracker, Record):
                tracker.start({**self.facts, "run": self})

    def kept(self) -> str:
        """What the file of the run holds, in words."""
        if self.saved_step is None and not self.continues:
            return "nothing has been stored yet"
        step = self.began_at if self.saved_step is None else self.saved_step
        return f"{self.name}.pt keeps " + ("the last good epoch" if step == self.epoch_began else f"step {step}")

    def _save_within_epoch(self) -> None:
        """Stores the run between two steps and goes on; the next time, if the disk is full."""
        try:
            self.save()
        except OSError as error:
            self._save_at = time.perf_counter() + self._save_every
            self._warn_unsaved(f"step {self.step} could not be saved ({error}); free some space, training continues.")
        except FloatingPointError as error:
            self._stop_or_roll_back(error)

    def _stop_or_roll_back(self, error: FloatingPointError) -> None:
        if self.guard.policy != "rollback":
            raise error
        self.guard.roll_back("weights are not finite")
        self.boundary.begin_epoch()

    def _leave(self) -> None:
        """Stores the run between two steps and ends it as the signal asks."""
        try:
            self.save()
        except OSError as error:
            self._warn_unsaved(f"step {self.step} could not be saved ({error}): {self.kept()}.")
        else:
            self.print(f"Stopped after step {self.step}, saved to {self.name}.pt; pass resume=True to continue.")
        self.signals.received = self.parallel.stops(self.signals.received)
        self.signals.leave()

    def _warn_unsaved(self, text: str) -> None:
        if self.parallel.is_first:
            warnings.warn(text, stacklevel=5)

    def _require_finite_weights(self, model: dict[str, Any]) -> None:
        if self.parallel.is_first:  # the others have the same, or hear of it from the first
            self.guard.require_finite_weights(model)

    def _require_finite(self, row: dict[str, Any]) -> None:
        if "loss" in self.metrics.sums:  # not if all steps so far were skipped
            self.guard.require_finite_loss(row["loss"])
