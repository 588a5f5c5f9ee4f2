"""Two runs argument by argument."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from superself.basics.tables import text_table
from superself.reporting.stored_run import StoredRun

OF_THIS_RUN = ("settings.name", "start", "end", "state", "plan", "warnings", "resumed_at_step")  # differ anyway
MISSING = "not set"
WIDEST = 60  # characters of a value


@dataclass(frozen=True, eq=False)
class RunDifferences:
    """What differs between two runs. Prints as two tables: arguments, and last values.

    Args:
        names: of the two runs.
        differences: name of an argument, setting or fact -> its two values; "not set" where a run has none.
        same: those that are equal -> value.
        metrics: name of a column of NAME.csv -> the last values of both, None where there is none.
    """

    names: tuple[str, str]
    differences: dict[str, tuple[Any, Any]]
    same: dict[str, Any]
    metrics: dict[str, tuple[Any, Any]]

    def __str__(self) -> str:
        rows = [(key, *map(_shown, values)) for key, values in self.differences.items()]
        text = (
            text_table(("differs", *self.names), rows)
            if rows
            else f"{' and '.join(self.names)} have the same arguments"
        )
        measured = [(key, *map(_number, values)) for key, values in self.metrics.items()]
        if measured:
            text += "\n\n" + text_table(("last value", *self.names), measured)
        return f"{text}\n\n{len(self.same)} arguments and settings are the same (.same)"

    __repr__ = __str__


def describe_differences(first: StoredRun, second: StoredRun, names: tuple[str, str]) -> RunDifferences:
    """Compares what two runs were made with, and what came out; ``names``: what to call them."""
    flats = first.flat, second.flat
    keys = [name for name in dict.fromkeys((*flats[0], *flats[1])) if name not in OF_THIS_RUN]
    pairs = {name: tuple(flat.get(name, MISSING) for flat in flats) for name in keys}
    columns = dict.fromkeys(column for run in (first, second) for row in run.rows for column in row)
    metrics = {name: tuple(next(reversed(run.series(name)), None) for run in (first, second)) for name in columns}
    metrics["minutes"] = first.minutes, second.minutes
    return RunDifferences(
        names,
        {name: pair for name, pair in pairs.items() if not _equal(*pair)},
        {name: pair[0] for name, pair in pairs.items() if _equal(*pair)},
        {name: pair for name, pair in metrics.items() if pair != (None, None) and name != "seconds"},
    )


def _equal(first: Any, second: Any) -> bool:
    return first == second and isinstance(first, bool) == isinstance(second, bool)


def _shown(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 3]}..."


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
