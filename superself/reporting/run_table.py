"""runs: a folder of runs as a table."""

from __future__ import annotations

import csv
import difflib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superself.basics.tables import text_table
from superself.reporting.run_differences import RunDifferences, describe_differences
from superself.reporting.stored_run import COLUMNS, StoredRun, read_run
from superself.training.files import write_text

if TYPE_CHECKING:
    import pandas

# Values of evaluators, by their names in NAME.csv: fractions, shown in per cent, and others. At most MOST_MEASURES of them.
FRACTIONS = ("knn", "linear", "svm", "ridge", "centroid", "rotation")
OTHERS = ("held_out_loss", "rankme", "alpha_req", "lidar", "alignment", "uniformity")
MOST_MEASURES = 4
TRACKERS = ("mlartifacts", "mlflow", "mlruns", "tensorboard", "wandb")  # their folders hold copies of records


def runs(folder: str | Path = "store", recursive: bool = True) -> Runs:
    """The runs in a folder, those started last first: ``print(runs("store").sort("knn"))``.

    Only the text files that each run leaves are read (NAME.yaml, NAME.csv), so a thousand runs take seconds. Other .yaml files
    are passed over.

    Args:
        folder: where runs are stored.
        recursive: also look in the folders inside it, except hidden ones and those of trackers (mlflow, tensorboard, wandb).
    Raises:
        FileNotFoundError: if there is no such folder.
    """
    folder = Path(os.path.expanduser(folder))
    if not folder.is_dir():
        raise FileNotFoundError(
            f'there is no folder {str(folder)!r}; pass the one that supervise(name=...) stored runs in, such as "store".'
        )
    found, broken, others = [], {}, 0
    for path in _yaml_files(folder, recursive):
        try:
            run = read_run(path)
        except (OSError, ValueError) as error:
            broken[str(path)] = str(error)
            continue
        if run is None:
            others += 1
        else:
            found.append(run)
    found.sort(key=lambda run: str(run.facts.get("start")), reverse=True)
    return Runs(found, str(folder), broken, others)


def _yaml_files(folder: Path, recursive: bool) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(n for n in folders if n[0] != "." and n not in TRACKERS) if recursive else []
        yield from (Path(place, name) for name in sorted(files) if name.endswith(".yaml") and not name.startswith("."))


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs as a table: print it, iterate over its ``StoredRun``s, or take one by its name: ``table["simclr"]``.

    Args:
        items: the runs.
        folder: where they are.
        broken: files of runs that could not be read -> reason.
        others: number of .yaml files that are not of runs.
    """

    items: list[StoredRun]
    folder: str = ""
    broken: dict[str, str] | None = None
    others: int = 0

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[StoredRun]:
        return iter(self.items)

    def __getitem__(self, key: int | str) -> StoredRun:
        if isinstance(key, int):
            return self.items[key]
        matches = [run for run in self.items if key in (run.name, self._short(run))]
        if not matches:
            near = difflib.get_close_matches(key, [self._short(run) for run in self.items], 3, 0.4)
            raise KeyError(
                f"there is no run {key!r} in {self.folder}" + (f"; did you mean {', '.join(near)}?" if near else ".")
            )
        return matches[0]

    def sort(self, key: str, descending: bool | None = None) -> Runs:
        """Sorted by a column of the table, a column of NAME.csv, an argument or a setting; runs without it come last.

        Args:
            key: what ``run[key]`` takes.
            descending: None: the largest number first, but the smallest loss; texts in the order of the alphabet.
        """
        self._require(key)
        known = [run for run in self.items if run[key] is not None]
        numbers = all(isinstance(run[key], (int, float)) for run in known)
        if descending is None:
            descending = numbers and not key.endswith("loss")
        known.sort(key=lambda run: run[key] if numbers else str(run[key]), reverse=descending)
        return replace(self, items=known + [run for run in self.items if run[key] is None])

    def where(self, condition: Callable[[StoredRun], bool] | None = None, **values: Any) -> Runs:
        """The runs that fit: ``where(method="simclr", lr=0.001)``, ``where(lambda run: run["knn"] > 0.3)``.

        Args:
            condition: takes a run.
            **values: the value of each key, a list of values, or a function of it. Texts in upper or lower case; a method by
                its name or that of its class. Dots in a key ("settings.lr") need ``**{"settings.lr": 0.001}``.
        """
        for key in values:
            self._require(key)
        kept = self.items if condition is None else [run for run in self.items if condition(run)]
        return replace(
            self, items=[run for run in kept if all(_fits(run, key, value) for key, value in values.items())]
        )

    def compare(self, first: str | int, second: str | int) -> RunDifferences:
        """Two runs argument by argument: what differs, and the last values of both; print it."""
        pair = self[first], self[second]
        return describe_differences(*pair, names=tuple(map(self._short, pair)))

    def records(self) -> list[dict[str, Any]]:
        """A dictionary per run: the columns of the table and the last value of every column of NAME.csv."""
        names = [
            name
            for name in dict.fromkeys(n for run in self.items for row in run.rows for n in row)
            if name not in COLUMNS
        ]
        return [
            {name: run[name] if name in COLUMNS else _last(run, name) for name in (*COLUMNS, *names)}
            for run in self.items
        ]

    def to_csv(self, path: str | Path) -> Path:
        """Writes ``records`` as a CSV file, and returns its path; missing folders are created."""
        path, text = Path(path), io.StringIO(newline="")
        records = self.records()
        writer = csv.DictWriter(text, list(records[0]) if records else list(COLUMNS))
        writer.writeheader()
        writer.writerows(records)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text.getvalue())
        return path

    def to_pandas(self) -> pandas.DataFrame:
        """``records`` as a DataFrame; needs pandas."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                'to_pandas() needs pandas, which is not installed; run pip install "superself[tables]".'
            ) from error
        return pandas.DataFrame(self.records(), columns=None if self.items else list(COLUMNS))

    def __str__(self) -> str:
        lines = [f"{len(self)} run{'' if len(self) == 1 else 's'} in {self.folder}"]
        measures = [name for name in FRACTIONS + OTHERS if any(run.series(name) for run in self.items)][:MOST_MEASURES]
        gains = [name for name in measures if any(run.gain(name) is not None for run in self.items)]
        head = ["name", "method", "data", "date", "state", "epochs", "loss", "chance"]
        for name in measures:
            head += [name, "gain"] if name in gains else [name]
        if self.items:
            lines.append(
                text_table([*head, "minutes", "images/s"], (self._cells(run, measures, gains) for run in self.items))
            )
        lines += [f"not read: {path}: {reason}" for path, reason in (self.broken or {}).items()]
        if self.others:
            lines.append(f"{self.others} other .yaml file{'' if self.others == 1 else 's'} passed over")
        return "\n".join(lines)

    __repr__ = __str__

    def _cells(self, run: StoredRun, measures: Iterable[str], gains: Iterable[str]) -> list[Any]:
        cells = [self._short(run), run.method, run.data, run.date, run.state, f"{run.epoch}/{run.epochs or '?'}"]
        cells += ["" if value is None else f"{value:.3f}" for value in (run.loss, run.chance_loss)]
        for name in measures:
            series, gain = run.series(name), run.gain(name)
            scale, form = (100, ".1f") if name in FRACTIONS else (1, ".3g")
            unit = "%" if name in FRACTIONS else ""
            cells.append(f"{scale * series[-1]:{form}}{unit}" if series else "")
            if name in gains:
                cells.append("" if gain is None else f"{scale * gain:+{form}}")
        return [*cells, *("" if v is None else f"{v:.{d}f}" for v, d in ((run.minutes, 1), (run.images_per_second, 0)))]

    def _short(self, run: StoredRun) -> str:
        return os.path.relpath(run.name, self.folder) if self.folder else run.name

    def _require(self, key: str) -> None:
        if key in COLUMNS or not self.items or any(run[key] is not None or _declares(run, key) for run in self.items):
            return
        known = {*COLUMNS, *(n for run in self.items for n in (*run.flat, *(c for row in run.rows for c in row)))}
        known |= {name.rpartition(".")[2] for name in known}
        near = difflib.get_close_matches(key, sorted(known), 3)
        raise ValueError(
            f"no run has a value {key!r}; " + (f"did you mean {', '.join(near)}?" if near else "see run.facts.")
        )


def _declares(run: StoredRun, key: str) -> bool:
    return any(name in run.flat for name in (key, f"arguments.{key}", f"settings.{key}"))


def _last(run: StoredRun, name: str) -> Any:
    return next((row[name] for row in reversed(run.rows) if row.get(name) is not None), None)


def _fits(run: StoredRun, key: str, wanted: Any) -> bool:
    value = run[key]
    if callable(wanted):
        return value is not None and bool(wanted(value))
    if isinstance(wanted, (list, tuple, set, range)) and not isinstance(value, list):
        return any(_fits(run, key, item) for item in wanted)
    if isinstance(wanted, str):
        candidates = [value, run.facts.get("algorithm")] if key == "method" else [value]
        return wanted.lower() in [str(candidate).lower() for candidate in candidates]
    return value == wanted
