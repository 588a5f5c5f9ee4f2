"""One file a run: tensors and plain values only, replaced as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def checkpoint_path(name: str | Path) -> Path:
    """The file of the run ``name``: "store/base" is kept in store/base.pt."""
    name = Path(name)
    return name if name.suffix == ".pt" else name.with_name(name.name + ".pt")


def write_checkpoint(name: str | Path, state: dict[str, Any]) -> Path:
    """Writes ``state`` beside its place, syncs it and renames it, so that the file there is whole at every moment.

    Args:
        name: the run; parent folders are made.
        state: nested dicts, lists and tuples of tensors, numbers, strings, booleans and None.
    Raises:
        TypeError: if ``state`` holds anything that could not be read back safely; nothing is written.
        OSError: if the disk refuses; the file that was there stays.
    """
    _require_plain(state, "state")
    path = checkpoint_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, RuntimeError):  # torch reports a full disk as a RuntimeError of its zip writer
            raise OSError(f"could not write {path}: {error}") from error
        raise
    return path


def read_checkpoint(name: str | Path) -> dict[str, Any]:
    """Reads a run's file onto the CPU, executing nothing that it holds.

    Raises:
        FileNotFoundError: if there is no such file; names the runs that are in its folder.
        ValueError: if the file is not a checkpoint of this package.
    """
    path = checkpoint_path(name)
    if not path.is_file():
        others = sorted(str(p.with_suffix("")) for p in path.parent.glob("*.pt"))
        raise FileNotFoundError(
            f"There is no run {str(name)!r}: {path} does not exist (the folder holds {', '.join(others) or 'no runs'}); "
            f"pass the name that was given to supervise(name=...)."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({reason}); pass a file that supervise() wrote."
        ) from error
    if not isinstance(state, dict) or "algorithm" not in state or "model" not in state:
        raise ValueError(f"{path} holds no superself run; pass a file that supervise() wrote.")
    return state


def is_plain(value: Any) -> bool:
    """Whether ``value`` is made of numbers, strings, booleans, None, tensors and dicts, lists and tuples of them only."""
    if isinstance(value, dict):
        return type(value).__name__ in ("dict", "OrderedDict") and all(is_plain(v) for kv in value.items() for v in kv)
    if type(value) in (list, tuple):
        return all(is_plain(v) for v in value)
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor)


def _require_plain(value: Any, place: str) -> None:
    """Raises a TypeError that names the first place in ``value`` that is not plain."""
    if is_plain(value):
        return
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, item in value.items():
            _require_plain(item, f"{place}[{key!r}]")
    raise TypeError(
        f"{place} is a {type(value).__name__}, which a checkpoint cannot hold safely; make it a tensor or a plain value."
    )


def require_fit(expected: dict[str, Tensor], given: dict[str, Tensor], source: str) -> None:
    """Raises a ValueError that lists every key of ``given`` which does not fit ``expected``, shapes included."""
    complaints = [f"missing in the file: {key}" for key in expected if key not in given]
    complaints += [f"unknown here: {key}" for key in given if key not in expected]
    complaints += [
        f"another shape: {key} is {tuple(given[key].shape)} in the file and {tuple(expected[key].shape)} here"
        for key in expected
        if key in given and given[key].shape != expected[key].shape
    ]
    if complaints:
        listed = "\n  ".join(complaints[:20] + [f"... and {len(complaints) - 20} more"] * (len(complaints) > 20))
        raise ValueError(
            f"{source} does not fit this model ({len(complaints)} of {len(expected)} entries differ); build the "
            f"supervisor with the backbone, predictor and arguments of that run, or go on from its backbone alone: load the run "
            f"without a data set, and give its get_backbone() to a new supervisor as backbone=:\n  {listed}"
        )


def dataset_state_keys(module: nn.Module) -> list[str]:
    """Keys of the state that belong to the images of one data set, such as the rows of a memory bank.

    They begin with what a module inside has in its ``dataset_state``, names of its own parts.
    """
    modules = [(f"{name}." if name else "", part) for name, part in module.named_modules()]
    beginnings = tuple(prefix + own for prefix, part in modules for own in getattr(part, "dataset_state", ()))
    return [key for key in module.state_dict() if key.startswith(beginnings)]
