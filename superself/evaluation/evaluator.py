"""Evaluator: the interface of everything that measures a backbone, during a run or after it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from superself.basics.validate import require_count
from superself.evaluation.subject import Subject


class Evaluator:
    """Measures a backbone and changes nothing; pass it as ``supervise(evaluators=[...])`` or ``supervisor.evaluate([...])``.

    Override ``evaluate``, and what else you need. What must be known is checked in ``open``, which raises before the first
    step of a run.

    Args:
        every: epochs from one measurement to the next; the first is made before training, the last after it.
    """

    name: ClassVar[str] = ""  # short, for messages, figures and tables
    higher_is_better: ClassVar[bool | None] = True  # of the main value, the first of the dictionary; None if neither

    def __init__(self, every: int = 1) -> None:
        require_count("every", every, "is a number of epochs")
        self.every = every

    def open(self, subject: Subject) -> None:
        """Opens data sets at the size of the subject, and checks what can be checked; called once, before ``evaluate``."""

    def evaluate(self, subject: Subject) -> dict[str, float]:
        """The values, by the names that the record, the trackers and the tables show; the main value first."""
        raise NotImplementedError(f"{type(self).__name__} defines no evaluate(subject) -> dict of numbers; write one.")

    def figure(self, subject: Subject, path: Path) -> Path | None:
        """Writes a picture to ``path`` (a PNG), or returns None if there is nothing to show."""
        return None
