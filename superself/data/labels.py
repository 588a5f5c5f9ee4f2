"""Labels from a table: a dictionary, a CSV file, a DataFrame, class folders, or an array, brought together with image files."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from superself.basics.validate import require_choice
from superself.data.wording import describe_error, printable

LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "y")  # which of several columns holds the labels
MISSING = ("", "NaN", "nan", "N/A", "NA")  # texts that stand for no label
WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")  # as str() writes them: "01" and "1_0" are names
DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)?(\.[0-9]*)?(?<=[0-9.])([eE][-+]?[0-9]+)?")
LONG = re.compile(r"[-+]?[0-9]{16,}")  # more digits than a float keeps: a name
LISTED = 5  # names in a message


@dataclass(frozen=True)
class Labelled:
    """Images with labels from elsewhere; passed wherever a data set is, and opened by ``open_images``.

        Labelled("photos", "labels.csv")
        Labelled("photos", {"a.jpg": "cat", "dogs/b.jpg": "dog"})

    A name in a table is the path of a file, its path below the folder that holds all images, the end of its path, or the name
    of the file, with or without its extension; whichever of these fits first, and fits a single file. Names without a file
    are ignored, so that one table may serve several folders.

    Whole numbers are labels as they are. Other numbers are targets of a regression. Everything else is the name of a class,
    and classes are numbered in the order of their names.

    Args:
        images: a folder, a pattern, a list of paths, or anything else that ``open_images`` takes.
        labels: a dictionary or pandas Series of file name -> label; a CSV or TSV file; a pandas DataFrame; "folders" for the
            folder that each file is in; or one label per image in their order (folders: sorted by path), a list, array or
            tensor.
        image_column: of the CSV file or DataFrame, by name or number; None: the column that most files are found in, or the
            index of a DataFrame.
        label_column: by name or number; None: the column called "label", "class", "category", "target" or "y", or the
            only other one.
        unlabelled: "error", or "omit" to leave out images that the table has no label for; they are listed in
            ``Images.skipped``.
    """

    images: Any
    labels: Any
    image_column: str | int | None = None
    label_column: str | int | None = None
    unlabelled: str = "error"

    def __post_init__(self) -> None:
        require_choice("unlabelled", self.unlabelled, ("error", "omit"))


class FileLabels(NamedTuple):
    """What ``label_files`` found: ``kept`` places of files, their labels, names of classes or None, omitted places."""

    kept: list[int]
    labels: list[Any]
    classes: list[str] | None
    omitted: list[int]


def label_files(paths: Sequence[Path], source: Labelled) -> FileLabels:
    """The label of each file.

    Raises:
        ValueError: if a file has no label or several, a name in the table fits several files, or columns cannot be found.
    """
    labels = source.labels
    if isinstance(labels, str) and labels == "folders":
        found: list[Any] = [path.absolute().parent.name for path in paths]
    elif (table := _read_table(labels)) is not None:
        found = _match_table(table, _FileIndex(paths), source)
    else:
        found = check_length(labels, len(paths))
    kept = [place for place, label in enumerate(found) if not _is_missing(label)]
    omitted = [place for place, label in enumerate(found) if _is_missing(label)]
    if not kept or (omitted and source.unlabelled == "error"):
        raise ValueError(
            f"{len(omitted)} of {len(paths)} images have no label: {_listed(str(paths[place]) for place in omitted)}; "
            'name each file in the table, or pass Labelled(..., unlabelled="omit") to leave such images out.'
        )
    numbers, classes = number_labels([found[place] for place in kept])
    return FileLabels(kept, numbers, classes, omitted)


def number_labels(labels: Sequence[Any]) -> tuple[list[Any], list[str] | None]:
    """Labels as numbers, and the names of the classes, or None where the labels are numbers already."""
    labels = [label.item() if isinstance(label, (np.generic, Tensor)) else label for label in labels]
    if all(isinstance(label, (bool, int)) for label in labels):
        return [int(label) for label in labels], None
    if all(isinstance(label, (int, float)) for label in labels):
        whole = all(float(label).is_integer() for label in labels)  # pandas makes floats of a column with gaps
        return [int(label) if whole else float(label) for label in labels], None
    names = [str(label) for label in labels]
    if all(WHOLE.fullmatch(name) for name in names):
        return [int(name) for name in names], None
    if all(DECIMAL.fullmatch(name) and not LONG.fullmatch(name) for name in names):
        return [float(name) for name in names], None
    classes = sorted(set(names))
    numbers = {name: number for number, name in enumerate(classes)}
    return [numbers[name] for name in names], [printable(name) for name in classes]


def check_length(labels: Any, count: int) -> list[Any]:
    """One label per image, as a list.

    Raises:
        TypeError: if they are not a sequence.
        ValueError: if they are not as many as the images, or have several dimensions.
    """
    if isinstance(labels, (str, bytes)) or not hasattr(labels, "__len__") or not hasattr(labels, "__getitem__"):
        raise TypeError(
            f"labels are a {type(labels).__name__}; pass a dictionary of file name -> label, a CSV file, a DataFrame, "
            '"folders", or one label per image.'
        )
    if len(labels) != count:
        raise ValueError(
            f"{len(labels)} labels for {count} images; pass one label per image, in the order of the images."
        )
    if getattr(labels, "ndim", 1) != 1:
        raise ValueError(f"labels have the shape {tuple(labels.shape)}; pass one class per image, ({count},).")
    return list(labels)


class _Table(NamedTuple):
    """Rows of cells, the names of the columns or None, and what the table is called in messages."""

    rows: list[list[Any]]
    header: list[str] | None
    name: str


def _read_table(labels: Any) -> _Table | None:
    """The table in a dictionary, Series, DataFrame or CSV file; None for anything else."""
    if isinstance(labels, Mapping):
        return _Table([[key, value] for key, value in labels.items()], ["file", "label"], "the dictionary")
    if hasattr(labels, "columns") and hasattr(labels, "itertuples"):  # a pandas DataFrame
        header = ["index", *map(str, labels.columns)]
        return _Table([list(row) for row in labels.itertuples(index=True, name=None)], header, "the DataFrame")
    if hasattr(labels, "index") and hasattr(labels, "items"):  # a pandas Series
        return _Table([list(row) for row in labels.items()], ["file", "label"], "the Series")
    if isinstance(labels, (str, os.PathLike)):
        return _read_csv(Path(labels).expanduser())
    return None


def _read_csv(path: Path) -> _Table:
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets begin with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{printable(str(path))} is not UTF-8 ({describe_error(error)}); save it as UTF-8.") from error
    except OSError as error:
        raise FileNotFoundError(
            f"{printable(str(path))} cannot be read ({describe_error(error)}); pass the path of a CSV file."
        ) from error
    first = text.partition("\n")[0]
    delimiter = max("\t;,|", key=first.count) if any(mark in first for mark in "\t;,|") else ","
    try:
        rows = [
            [cell.strip() for cell in row]
            for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
            if any(cell.strip() for cell in row)
        ]
    except csv.Error as error:
        raise ValueError(f"{printable(str(path))} is not a table ({error}); save it as CSV.") from error
    if not rows:
        raise ValueError(f"{printable(str(path))} is empty; write one line per image: its file name and its label.")
    uneven = [number for number, row in enumerate(rows, 1) if len(row) != len(rows[0])]
    if uneven:
        raise ValueError(
            f"{printable(str(path))} has {len(rows[0])} columns in its first row and {len(rows[uneven[0] - 1])} in row "
            f"{uneven[0]}; quote names that contain {delimiter!r}."
        )
    return _Table(rows, None, printable(str(path)))


def _match_table(table: _Table, files: _FileIndex, source: Labelled) -> list[Any]:
    """One label for each file, None where there is none."""
    table = _with_header(table, files, source)
    header = table.header or [str(number) for number in range(len(table.rows[0]))]
    width = len(header)
    if source.image_column is not None:
        images = _column(source.image_column, table, "image_column")
    else:
        found = [sum(bool(files.find(row[number])) for row in table.rows) for number in range(width)]
        images = found.index(max(found))
        if max(found) == 0:
            cells = _listed(str(row[0]) for row in table.rows)
            raise ValueError(
                f"none of the {len(table.rows)} names in {table.name} fits one of the images, for example {cells}; the images "
                f"are {_listed(files.names)}."
            )
    labels = _label_column(table, header, images, source)
    given: list[Any] = [None] * len(files.names)
    for row in table.rows:
        places = files.find(row[images])
        if len(places) > 1:
            raise ValueError(
                f"'{printable(str(row[images]))}' in {table.name} fits {len(places)} images: "
                f"{_listed(files.names[place] for place in places)}; write their paths below the common folder."
            )
        for place in places:
            if given[place] is not None and given[place] != row[labels] and not _is_missing(row[labels]):
                raise ValueError(
                    f"{table.name} has the labels {given[place]!r} and {row[labels]!r} for {files.names[place]}; keep one."
                )
            given[place] = row[labels] if given[place] is None else given[place]
    return given


def _with_header(table: _Table, files: _FileIndex, source: Labelled) -> _Table:
    """The table of a CSV file with its first row as header, if that is what it is."""
    if table.header is not None:
        return table
    first, *rest = table.rows
    named = {column for column in (source.image_column, source.label_column) if isinstance(column, str)}
    if named or (rest and not any(files.find(cell) for cell in first)):
        return _Table(rest, first, table.name)
    return table


def _label_column(table: _Table, header: list[str], images: int, source: Labelled) -> int:
    if source.label_column is not None:
        return _column(source.label_column, table, "label_column")
    others = [number for number in range(len(header)) if number != images]
    if table.name == "the DataFrame":
        others = [number for number in others if number != 0]  # the index is not a label unless it is asked for
    called = [number for name in LABEL_COLUMNS for number in others if header[number].lower() == name]
    if len(others) != 1 and not called:
        raise ValueError(
            f"{table.name} has the columns {', '.join(header)}; pass label_column= to say which one holds the labels."
        )
    return called[0] if called else others[0]


def _column(wanted: str | int, table: _Table, argument: str) -> int:
    header, width = table.header, len(table.rows[0]) if table.rows else 0
    if isinstance(wanted, int):
        offset = 1 if table.name == "the DataFrame" else 0  # columns are counted without the index
        if 0 <= wanted < width - offset:
            return wanted + offset
    elif header is not None and wanted in header:
        return header.index(wanted)
    raise ValueError(
        f"{argument}={wanted!r} is not a column of {table.name}; its columns are "
        f"{', '.join(header) if header else f'0 to {width - 1}'}."
    )


class _FileIndex:
    """Finds files by what a table may call them.

    Args:
        paths: of the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        absolute = [os.path.abspath(path) for path in paths]
        root = os.path.commonpath([os.path.dirname(path) for path in absolute])
        self.names = [printable(str(path)) for path in paths]
        self._parts = [Path(path).parts for path in absolute]
        self._exact: dict[str, list[int]] = {}
        self._named: dict[str, list[int]] = {}
        for place, path in enumerate(absolute):
            for name in {path, os.path.relpath(path, root).replace(os.sep, "/"), str(paths[place])}:
                self._exact.setdefault(name, []).append(place)
            for name in {os.path.basename(path), Path(path).stem}:
                self._named.setdefault(name, []).append(place)

    def find(self, name: Any) -> list[int]:
        """The places of the files that a name fits best; none if it fits no file."""
        if name is None or name == "" or (isinstance(name, float) and math.isnan(name)):  # a file may be called NA
            return []
        text = str(name)
        for form in (text, text.replace("\\", "/").removeprefix("./"), os.path.abspath(os.path.expanduser(text))):
            if form in self._exact:
                return self._exact[form]
        parts = Path(text.replace("\\", "/").removeprefix("./")).parts
        candidates = self._named.get(parts[-1], []) if parts else []
        return [place for place in candidates if self._ends_with(place, parts)]

    def _ends_with(self, place: int, parts: tuple[str, ...]) -> bool:
        own = self._parts[place][-len(parts) :]
        return own[:-1] == parts[:-1] and parts[-1] in (own[-1], Path(own[-1]).stem)


def _is_missing(label: Any) -> bool:
    return (
        label is None
        or (isinstance(label, str) and label in MISSING)
        or (isinstance(label, float) and math.isnan(label))
    )


def _listed(names: Any) -> str:
    names = [f"'{printable(name)}'" for name in names]
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
