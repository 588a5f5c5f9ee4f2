"""Features in files that other programs read: .npz, .parquet and .csv."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from superself.basics.validate import require_choice
from superself.evaluation.extraction import Features
from superself.training.files import replacing

if TYPE_CHECKING:
    import pyarrow

ENDINGS = (".npz", ".parquet", ".csv")
ROWS_AT_A_TIME = 2**14
UNDECODABLE = "surrogateescape"  # how bytes of file names that are not UTF-8 are read and written


def check_features_path(path: str | Path, dtype: str = "float32") -> Path:
    """The path as one, if features can be written there.

    Raises:
        ImportError: if the format needs a package that is not installed.
        IsADirectoryError: if it is a folder.
        ValueError: if the ending or the number format is unknown.
    """
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(
            f"cannot tell the format of {str(path)!r} by its ending; pass a path that ends in .npz, .parquet or .csv."
        )
    require_choice("dtype", dtype, ("float32", "float16"))
    if path.is_dir():
        raise IsADirectoryError(f"cannot write features to {path}: it is a folder; pass another path.")
    if path.suffix.lower() == ".parquet":
        _pyarrow()
    return path


def write_features(found: Features, path: str | Path, dtype: str = "float32") -> Path:
    """Writes features with paths and labels, completely or not at all; missing folders are created.

    .npz has the arrays ``features`` (N, D), ``paths`` (N,) and ``labels`` (N, ...), which NumPy reads without pickle. .parquet
    and .csv have a row per image and the columns path, label (label0, label1, ... if there are several) and f0, f1, ... What
    the features have not is left out.

    Args:
        path: its ending decides the format.
        dtype: "float32", or "float16" for half the size and about three digits; larger values than 65504 do not fit.
    Raises:
        OverflowError: if a feature is too large for float16.
    """
    path = check_features_path(path, dtype)
    values = found.features.to(getattr(torch, dtype)).numpy()
    if not np.isinf(found.features.numpy()).any() and np.isinf(values).any():
        largest = found.features[found.features.isfinite()].abs().max()
        raise OverflowError(f'the largest feature is {largest:.4g}, which float16 cannot hold; pass dtype="float32".')
    labels = None if found.labels is None else found.labels.numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        {".npz": _write_npz, ".parquet": _write_parquet, ".csv": _write_csv}[path.suffix.lower()](
            file, values, found.paths, labels
        )
    return path


def read_features(path: str | Path) -> Features:
    """The features that ``write_features`` has written, or another program with the same names.

    Features are float32 and labels int64 or float32, as ``features`` gives them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has no features, or is damaged.
    """
    path = check_features_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; pass the path that was given to embed().")
    read = {".npz": _read_npz, ".parquet": _read_parquet, ".csv": _read_csv}[path.suffix.lower()]
    try:
        values, paths, labels = read(path)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # zipfile, NumPy, pyarrow and csv have errors of many kinds
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error}); write it again.") from error
    if values is None or values.ndim != 2:
        raise ValueError(
            f"{path} holds no features; it needs an array features (N, D) (.npz), or columns f0, f1, ... (.parquet, .csv)."
        )
    features = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    return Features(features, _as_labels(labels), paths)


def _as_labels(labels: np.ndarray | None) -> Tensor | None:
    if labels is None:
        return None
    return torch.from_numpy(labels.astype(np.float32 if np.issubdtype(labels.dtype, np.floating) else np.int64))


def _columns(
    values: np.ndarray, paths: list[str] | None, labels: np.ndarray | None
) -> tuple[list[str], list[str], list[str]]:
    """Names of the columns: of the path (none or one), of labels, and of features."""
    width = 0 if labels is None else max(1, labels[0].size)
    named = ["label"] if labels is not None and labels.ndim == 1 else [f"label{i}" for i in range(width)]
    return [] if paths is None else ["path"], named, [f"f{i}" for i in range(values.shape[1])]


def _write_npz(file: Any, values: np.ndarray, paths: list[str] | None, labels: np.ndarray | None) -> None:
    arrays = {"features": values, "paths": None if paths is None else np.array(paths, dtype=str), "labels": labels}
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})


def _read_npz(path: Path) -> tuple[Any, list[str] | None, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        known = {name: arrays[name] for name in ("features", "paths", "labels") if name in arrays}
    paths = known["paths"].tolist() if "paths" in known else None
    return known.get("features"), paths, known.get("labels")


def _write_csv(file: Any, values: np.ndarray, paths: list[str] | None, labels: np.ndarray | None) -> None:
    text = io.TextIOWrapper(file, "utf-8", errors=UNDECODABLE, newline="")
    writer = csv.writer(text)
    writer.writerow([name for names in _columns(values, paths, labels) for name in names])
    flat = None if labels is None else labels.reshape(len(labels), -1)
    for row, line in enumerate(values):
        name = [] if paths is None else [paths[row]]
        label = [] if flat is None else flat[row].tolist()
        writer.writerow([*name, *label, *map(str, line)])
    text.flush()
    text.detach()


def _read_csv(path: Path) -> tuple[Any, list[str] | None, Any]:
    parts: list[np.ndarray] = []
    names: list[str] = []
    with path.open(newline="", encoding="utf-8", errors=UNDECODABLE) as file:
        reader = csv.reader(file)
        head = next(reader, [])
        features, labelled = _feature_columns(head), _label_columns(head)
        named = head.index("path") if "path" in head else None
        if not features:
            return None, None, None
        rows: list[list[float]] = []
        whole = True  # all labels are written as integers
        for line in reader:
            whole = whole and all(line[i].lstrip("-").isdecimal() for i in labelled)
            rows.append([float(line[i]) for i in (*features, *labelled)])
            names += [] if named is None else [line[named]]
            if len(rows) == ROWS_AT_A_TIME:
                parts.append(np.array(rows))
                rows = []
    table = np.concatenate([*parts, np.array(rows).reshape(-1, len(features) + len(labelled))])
    labels = table[:, len(features) :] if labelled else None
    labels = labels[:, 0] if labels is not None and head[labelled[0]] == "label" else labels
    labels = labels.astype(np.int64) if labels is not None and whole else labels
    return table[:, : len(features)], None if named is None else names, labels


def _feature_columns(head: list[str]) -> list[int]:
    return [place for place, name in enumerate(head) if name[:1] == "f" and name[1:].isdecimal()]


def _label_columns(head: list[str]) -> list[int]:
    return [i for i, name in enumerate(head) if name == "label" or (name[:5] == "label" and name[5:].isdecimal())]


def _write_parquet(file: Any, values: np.ndarray, paths: list[str] | None, labels: np.ndarray | None) -> None:
    arrow, parquet = _pyarrow()
    named, labelled, features = _columns(values, paths, labels)
    flat = None if labels is None else labels.reshape(len(labels), -1)
    writer = None
    for begin in range(0, len(values), ROWS_AT_A_TIME):
        part = slice(begin, begin + ROWS_AT_A_TIME)
        texts = [] if paths is None else [[p.encode("utf-8", "backslashreplace").decode() for p in paths[part]]]
        numbers = [] if flat is None else list(np.ascontiguousarray(flat[part].T))
        columns = [*texts, *numbers, *np.ascontiguousarray(values[part].T)]
        table = arrow.table([arrow.array(column) for column in columns], [*named, *labelled, *features])
        writer = writer or parquet.ParquetWriter(file, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _read_parquet(path: Path) -> tuple[Any, list[str] | None, Any]:
    _, parquet = _pyarrow()
    with parquet.ParquetFile(path) as file:
        head = file.schema_arrow.names
        features, labelled = _feature_columns(head), _label_columns(head)
        values = np.empty((file.metadata.num_rows, len(features)), dtype=np.float32) if features else None
        labels: list[np.ndarray] = []
        names: list[str] = []
        row = 0
        for part in file.iter_batches(ROWS_AT_A_TIME):
            for place, column in enumerate(features):
                values[row : row + len(part), place] = part.column(column).to_numpy(zero_copy_only=False)
            labels += (
                [np.stack([part.column(i).to_numpy(zero_copy_only=False) for i in labelled], axis=1)]
                if labelled
                else []
            )
            names += part.column("path").to_pylist() if "path" in head else []
            row += len(part)
    found = np.concatenate(labels) if labels else None
    found = found[:, 0] if found is not None and head[labelled[0]] == "label" else found
    return values, names if "path" in head else None, found


def _pyarrow() -> tuple[pyarrow, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            'a .parquet file needs pyarrow, which is not installed; run pip install "superself[tables]", or write .npz or .csv.'
        ) from error
    return pyarrow, pyarrow.parquet
