"""Comparison: the table, the differences with their uncertainty, and the verdict in words."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from superself.comparison.measuring import Measurement
from superself.evaluation.significance import Difference, paired_difference

REFERENCES = ("random", "supervised", "imagenet")  # roles of rows that are not among the entries, in their order
CALLED = {"knn": "kNN", "head": "own head"}
GIB = 2**30


class Verdict(NamedTuple):
    """The accuracy of ``first`` minus that of ``second``, by one classifier."""

    measure: str
    first: str
    second: str
    difference: Difference


@dataclass(eq=False)
class Row:
    """What is known of a row while the table grows; ``role`` is "entry", "random", "supervised", "imagenet" or "fine-tuned".

    ``reference`` is the name of the row with the same network before training.
    """

    role: str
    reference: str | None = None
    runs: list[Measurement] = field(default_factory=list)

    def correct(self, measure: str) -> Tensor | None:
        """(R, N), one row for each run; None if it was not measured."""
        found = [run.correct[measure] for run in self.runs if measure in run.correct]
        return torch.stack(found) if found else None

    def values(self) -> dict[str, list[float]]:
        """All measures by name, with a value for each run."""
        found: dict[str, list[float]] = {}
        for run in self.runs:
            accuracies = {name: right.nanmean().item() for name, right in run.correct.items()}
            for name, value in {**accuracies, **run.values}.items():
                found.setdefault(name, []).append(value)
        return found


@dataclass(frozen=True)
class Comparison:
    """Result of ``compare``; ``text``, also ``str(...)``, is the table with its protocol and verdict.

    Args:
        rows: by name, the mean over runs of each measure: "knn", "linear", "head" (of a network that was trained with labels),
            "linear@1%" (with a hundredth of the labels), and the main values of evaluators.
        text: the printed table.
        best: the entry with the highest accuracy, by the linear classifier where it was measured; others may be no worse as
            far as these images can show, see ``verdicts``.
        deviations: as ``rows``, the standard deviation over runs; only of rows with several.
        facts: by name, "runs", "parameters", "minutes", "images_seen", "peak_bytes", as far as they are known.
        verdicts: each entry against the random network, and against the best entry.
        warnings: sentences, also in ``text``.
        complete: False if the comparison was interrupted.
    """

    rows: dict[str, dict[str, float]]
    text: str
    best: str
    deviations: dict[str, dict[str, float]]
    facts: dict[str, dict[str, float]]
    verdicts: list[Verdict]
    warnings: list[str]
    complete: bool = True

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report: a list of rows with names, means, deviations and facts, and everything else."""
        rows = []
        for name, means in self.rows.items():
            deviations = {f"{measure}_deviation": value for measure, value in self.deviations.get(name, {}).items()}
            rows.append({"name": name, **means, **deviations, **self.facts[name]})
        verdicts = [
            {
                "measure": measure,
                "first": first,
                "second": second,
                "difference": found.value,
                "standard_error": found.error,
                "margin": found.margin,
                "images": found.images,
            }
            for measure, first, second, found in self.verdicts
        ]
        return {
            "rows": rows,
            "best": self.best,
            "verdicts": verdicts,
            "warnings": list(self.warnings),
            "complete": self.complete,
            "text": self.text,
        }


def summarise(
    table: dict[str, Row], k: int, protocol: Sequence[str], warnings: list[str], complete: bool
) -> Comparison:
    """The result from all rows that have been measured.

    Args:
        table: rows by name.
        k: neighbours of kNN, for its heading.
        protocol: sentences.
        warnings: sentences.
        complete: whether all was measured.
    """
    order = {role: place for place, role in enumerate(REFERENCES)}
    table = dict(sorted(table.items(), key=lambda pair: order.get(pair[1].role, len(order))))
    means = {name: {m: statistics.fmean(v) for m, v in row.values().items()} for name, row in table.items()}
    deviations = {
        name: {m: statistics.stdev(v) for m, v in row.values().items() if len(v) > 1}
        for name, row in table.items()
        if len(row.runs) > 1
    }
    facts = {name: _facts(row) for name, row in table.items()}
    measures = list(next(iter(table.values())).runs[0].correct)
    entries = [name for name, row in table.items() if row.role == "entry"] or list(table)
    main = "linear" if "linear" in measures else measures[0]
    best = {measure: max(entries, key=lambda name: means[name].get(measure, -1.0)) for measure in measures}
    verdicts = _verdicts(table, measures, entries, best)
    lines = [*_table(table, means, deviations, facts, k), *protocol]
    lines += _in_words(table, measures, best, verdicts) + warnings
    return Comparison(means, "\n".join(lines), best[main], deviations, facts, verdicts, warnings, complete)


def _facts(row: Row) -> dict[str, float]:
    """The mean of each fact over the runs, where all runs have it; the number of parameters and images stays whole."""
    found: dict[str, float] = {"runs": len(row.runs)}
    for name in ("parameters", "minutes", "images_seen", "peak_bytes"):
        values = [run.facts[name] for run in row.runs if name in run.facts]
        if len(values) == len(row.runs):
            found[name] = statistics.fmean(values) if name == "minutes" else max(values)
    return found


def _verdicts(table: dict[str, Row], measures: list[str], entries: list[str], best: dict[str, str]) -> list[Verdict]:
    found = []
    for measure in measures:
        pairs = [(name, table[name].reference) for name in entries]
        pairs += [(name, best[measure]) for name in table if name != best[measure] and table[name].role != "random"]
        for first, second in dict.fromkeys(pairs):
            parts = [table[name].correct(measure) if name in table else None for name in (first, second)]
            if all(part is not None for part in parts):
                found.append(Verdict(measure, first, second, paired_difference(*parts)))
    return found


# ---- in words ------------------------------------------------------------------------------------------------------------


def _table(
    table: dict[str, Row],
    means: dict[str, dict[str, float]],
    deviations: dict[str, dict[str, float]],
    facts: dict[str, dict[str, float]],
    k: int,
) -> list[str]:
    shares = list(dict.fromkeys(name for row in table.values() for run in row.runs for name in run.correct))
    others = list(dict.fromkeys(name for row in table.values() for run in row.runs for name in run.values))
    headings = {"knn": f"kNN (k={k})", "head": "own head"}
    columns = [[headings.get(measure, measure), *_cells(measure, means, deviations, True)] for measure in shares]
    for name in others:
        is_share = name.startswith("linear@")
        heading = f"{name.removeprefix('linear@')} labels" if is_share else name
        columns.append([heading, *_cells(name, means, deviations, is_share)])
    names = ["backbone", *table]
    if len(table) == 2 and {row.role for row in table.values()} == {"random", "entry"}:
        names.append("gain")
        random, trained = means.values()
        for column, measure in zip(columns, [*shares, *others], strict=True):
            is_share = measure in shares or measure.startswith("linear@")
            column.append(f"{100 * (trained[measure] - random[measure]):+.1f} " if is_share else "")
    else:
        columns += [column for column in _fact_columns(facts) if set(column[1:]) != {"-"}]
    first = max(20, *(len(name) + 2 for name in names))
    widths = [max(10, *(len(cell) + 2 for cell in column)) for column in columns]
    if columns and shares[0] == "knn":
        widths[0] = max(widths[0], 12)
    return [
        f"{name:<{first}}{''.join(f'{column[place]:>{width}}' for column, width in zip(columns, widths, strict=True))}".rstrip()
        for place, name in enumerate(names)
    ]


def _cells(
    measure: str, means: dict[str, dict[str, float]], deviations: dict[str, dict[str, float]], is_share: bool
) -> list[str]:
    cells = []
    for name, row in means.items():
        value, deviation = row.get(measure), deviations.get(name, {}).get(measure)
        if value is None:
            cells.append("-")
        elif is_share:
            spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
            cells.append(f"{100 * value:.1f}{spread}%")
        else:
            cells.append(f"{value:.4g}" + ("" if deviation is None else f" ± {deviation:.2g}"))
    return cells


def _fact_columns(facts: dict[str, dict[str, float]]) -> list[list[str]]:
    formats = {
        "minutes": ("minutes", lambda value: f"{value:.1f}" if value >= 1 else f"{value:.2g}"),
        "images_seen": ("images seen", lambda value: f"{value:,.0f}"),
        "parameters": ("parameters", lambda value: f"{value / 1e6:.1f} M" if value >= 1e5 else f"{value:,.0f}"),
        "peak_bytes": ("peak memory", lambda value: f"{value / GIB:.2f} GiB"),
    }
    return [
        [heading, *(write(row[name]) if name in row else "-" for row in facts.values())]
        for name, (heading, write) in formats.items()
    ]


def _in_words(table: dict[str, Row], measures: list[str], best: dict[str, str], verdicts: list[Verdict]) -> list[str]:
    entries = [name for name, row in table.items() if row.role == "entry"]
    lines = []
    for measure in measures:
        own = [verdict for verdict in verdicts if verdict.measure == measure]
        against_random = [v for v in own if v.first in entries and v.second == table[v.first].reference]
        against_best = [v for v in own if v.second == best[measure] and v not in against_random]
        called = CALLED.get(measure, measure)
        if len(entries) == 1:
            lines += [f"{called}: {_against_random(verdict.difference)}" for verdict in against_random]
            lines += _ranking(f"{called}: compared with {entries[0]}", against_best)
            continue
        lines += _ranking(f"{called}: the best entry is {best[measure]}", against_best)
        unclear = [f"{v.first} ({v.difference})" for v in against_random if v.difference.sign <= 0]
        if unclear:
            named = ", ".join(unclear)
            lines.append(f"{called}: no significant gain over random weights: {named}.")
        elif against_random:
            lines.append(f"{called}: every entry is better than its random network.")
    return lines + ([_meaning(table, verdicts)] if verdicts else [])


def _against_random(difference: Difference) -> str:
    if difference.sign > 0:
        return f"training helped ({difference})."
    if difference.sign < 0:
        return f"training did harm ({difference})."
    return f"no significant difference ({difference})."


def _ranking(start: str, against_best: list[Verdict]) -> list[str]:
    groups = {"better": 1, "not significantly different": 0, "worse": -1}
    parts = []
    for text, sign in groups.items():
        named = [f"{v.first} ({v.difference})" for v in against_best if v.difference.sign == sign]
        parts += [f"{text}: {', '.join(named)}"] if named else []
    return ["; ".join([start, *parts]) + "."] if parts else []


def _meaning(table: dict[str, Row], verdicts: list[Verdict]) -> str:
    images = max(verdict.difference.images for verdict in verdicts)
    single = [name for name, row in table.items() if len(row.runs) == 1 and row.role == "entry"]
    text = f"In parentheses: the difference on the same {images} test images and its 95 % confidence interval"
    if any(len(row.runs) > 1 for row in table.values()):
        text += ", with the spread over runs where there are several"
    text += "."
    if single:
        text += " A single run says nothing about how much another seed would change."
    return text
