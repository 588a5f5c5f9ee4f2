"""ReportTracker: writes NAME.html when a run ends."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from superself.reporting.page import report
from superself.training.trackers import Tracker


class ReportTracker(Tracker):
    """Writes the report of the run at its end; a report that cannot be written is a warning and never ends a run.

    Args:
        name: the run, "store/base".
    """

    def __init__(self, name: str | Path) -> None:
        self.name = name
        self.has_run = False

    def start(self, facts: dict[str, Any]) -> None:
        """Takes note that there is a run."""
        self.run = facts["run"]

    def epoch(self, row: dict[str, Any]) -> None:
        """There is something to report."""
        self.has_run = True

    def end(self, state: str) -> None:
        """Writes NAME.html, if an epoch was finished."""
        if not self.has_run:
            return
        try:
            path = report(self.name)
        except Exception as error:
            warnings.warn(f"the report of {str(self.name)!r} could not be written: {error!r}", stacklevel=2)
        else:
            self.run.print(f"Report: {path}")
