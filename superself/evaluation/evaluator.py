"""Evaluator: the interface of everything that measures a backbone, during a run or after it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from superself.basics.validate import require_count
from superself.evaluation.subject import Subject


class Evaluator:
    """Measures a backbone and changes nothing; for ``supervise(evaluators=[...])`` and ``supervisor.evaluate(evaluators=[...])``.

    Override ``evaluate``, and what else you need. Measurements of one moment share a Subject, so ask it for features
    instead of running the backbone: ten evaluators of one data set then need one pass.

        class Norm(Evaluator):
            name = "norm"

            def evaluate(self, subject):
                return {"norm": subject.features(subject.images).features.norm(dim=1).mean().item()}

    In a run it measures before the first step, every ``every`` epochs, and after the last one. An exception before the first
    step ends the run; one that comes later is reported once, and the values of that epoch are NaN.

    Args:
        every: epochs from one measurement to the next.
    """

    name: ClassVar[str] = ""  # short, for messages, figures and tables; "" takes the name of the class
    higher_is_better: ClassVar[bool | None] = True  # of the main value, the first of the dictionary; None if neither
    protocol: str = ""  # one sentence on how the last values were measured, for tables; "" takes the docstring's first

    def __init__(self, every: int = 1) -> None:
        require_count("every", every, "is a number of epochs")
        self.every = every

    def open(self, subject: Subject) -> None:
        """Opens data sets with ``subject.open``, and checks that the subject has what is needed: labels, views, a method.

        Called before the first step, and again for every other subject. What is missing is a ValueError that says so.
        """

    def evaluate(self, subject: Subject) -> dict[str, float]:
        """The values, by the names that the record, the trackers and the tables show; the main value first, or {} for none.

        Random numbers that are drawn here are the same at every call and change nothing outside.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no evaluate(subject) -> dict of numbers; write one.")

    def figure(self, subject: Subject, path: Path) -> Path | None:
        """Writes a picture to ``path`` (a PNG) and returns it, or returns None if there is nothing to show."""
        return None
