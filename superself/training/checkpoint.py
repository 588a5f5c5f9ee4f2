"""One file per run with tensors and plain values only, written completely or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

RUN_FILES = (".yaml", ".csv", ".skipped.txt", ".pt")  # of one run; archived in this order


def checkpoint_path(name: str | Path) -> Path:
    """The file of the run ``name``: "store/base" is stored in store/base.pt."""
    path = Path(os.path.expanduser(name))
    if path.name in ("", ".."):
        raise ValueError(f"name={str(name)!r} has no file name; pass a name such as 'store/base'.")
    return path if path.suffix == ".pt" else path.with_name(path.name + ".pt")


def require_writable(name: str | Path) -> Path:
    """Creates the folder of the run ``name`` and returns the path of its checkpoint; run it before any training.

    Raises:
        IsADirectoryError: if the path is a folder.
        OSError: if its folder cannot be created, or nothing can be written there.
    """
    path = checkpoint_path(name)
    if path.is_dir():
        raise IsADirectoryError(
            f"Cannot write the checkpoint {path}: it is a folder; remove it, or pass another name=."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a FileExistsError where a part of the path is a file
        raise _unwritable(path, error) from error
    if not os.access(path.parent, os.W_OK):
        raise _unwritable(path, PermissionError(f"no permission to write in the folder {path.parent}"))
    return path


def _unwritable(path: Path, error: Exception) -> OSError:
    """An error of the same class, or an OSError, that names the checkpoint and what to do."""
    kind = type(error) if isinstance(error, OSError) else OSError
    reason = getattr(error, "strerror", None) or error
    return kind(
        f"Cannot write the checkpoint {path}: {reason}; pass a name= in a folder with write permission and free space."
    )


def write_checkpoint(name: str | Path, state: dict[str, Any]) -> Path:
    """Writes ``state`` to a temporary file, syncs it and renames it, so that NAME.pt is a complete file at any time.

    Args:
        name: of the run; parent folders are created.
        state: nested dicts, lists and tuples of tensors, numbers, strings, booleans and None.
    Raises:
        TypeError: if ``state`` has a value that could not be read back safely; nothing is written.
        OSError: if the file cannot be written; the previous file is kept.
    """
    require_plain(state, "state")
    path = require_writable(name)
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp creates files that only their owner can read
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        if isinstance(error, (OSError, RuntimeError)):  # torch reports a full disk as a RuntimeError of its zip writer
            raise _unwritable(path, error) from error
        raise
    return path


def archived_path(name: str | Path) -> Path | None:
    """Where ``archive`` would move the checkpoint of a run: NAME.1.pt, or the first number that is free; None without one."""
    path = checkpoint_path(name)
    if not path.is_file():
        return None
    run, number = path.with_suffix(""), 1
    while any(Path(f"{run}.{number}{ending}").exists() for ending in RUN_FILES):
        number += 1
    return Path(f"{run}.{number}.pt")


def archive(name: str | Path) -> Path | None:
    """Renames NAME.pt, .yaml, .csv and .skipped.txt of an earlier run to NAME.1.*, or the first number that is free.

    A new run can then be stored as NAME. The old one is loaded as "NAME.1".

    Returns:
        The new path of the checkpoint, or None if there was no checkpoint to rename.
    """
    path, target = checkpoint_path(name), archived_path(name)
    if target is None:
        return None
    for ending in RUN_FILES:  # the checkpoint last: if this is interrupted, no file of the run can be overwritten
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path.with_suffix('')}{ending}", f"{target.with_suffix('')}{ending}")
    return target


def read_checkpoint(name: str | Path) -> dict[str, Any]:
    """Reads the file of a run onto the CPU without executing any code from it.

    Raises:
        FileNotFoundError: if there is no such file; lists the runs in its folder.
        ValueError: if the file is not a checkpoint of this package.
    """
    path = checkpoint_path(name)
    if not path.is_file():
        others = sorted(str(p.with_suffix("")) for p in path.parent.glob("*.pt"))
        raise FileNotFoundError(
            f"There is no run {str(name)!r}: {path} does not exist (runs in this folder: {', '.join(others) or 'none'}); "
            f"pass the name that was given to supervise(name=...)."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{path} is not a readable checkpoint ({reason}); pass a file that supervise() wrote."
        ) from error
    if not isinstance(state, dict) or not {"algorithm", "model"} <= state.keys():
        raise ValueError(f"{path} is not a checkpoint of superself; pass a file that supervise() wrote.")
    return state


def plain_dicts(value: Any) -> Any:
    """``value`` with plain dicts in place of their subclasses, such as the Counter of ``MultiStepLR``."""
    if isinstance(value, dict):
        return {key: plain_dicts(item) for key, item in value.items()}
    return type(value)(map(plain_dicts, value)) if type(value) in (list, tuple) else value


def is_plain(value: Any) -> bool:
    """Whether ``value`` consists of numbers, strings, booleans, None, tensors, and dicts, lists and tuples of these."""
    if isinstance(value, dict):
        return type(value).__name__ in ("dict", "OrderedDict") and all(is_plain(v) for kv in value.items() for v in kv)
    if type(value) in (list, tuple):
        return all(is_plain(v) for v in value)
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor)


def require_plain(value: Any, place: str = "state") -> None:
    """Raises a TypeError that names the first entry of ``value`` that is not plain."""
    if is_plain(value):
        return
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, item in value.items():
            require_plain(item, f"{place}[{key!r}]")
    raise TypeError(
        f"{place} is a {type(value).__name__}, which cannot be stored in a checkpoint; convert it to a tensor, number, string, "
        "list or dict."
    )


def require_fit(expected: dict[str, Tensor], given: dict[str, Tensor], source: str) -> None:
    """Raises a ValueError that lists each key of ``given`` and ``expected`` that the other lacks or has in another shape.

    Args:
        expected: the state of the model.
        given: the state in the file.
        source: how the message calls the file.
    """
    problems = [f"missing in the file: {key}" for key in expected if key not in given]
    problems += [f"only in the file: {key}" for key in given if key not in expected]
    problems += [
        f"different shape: {key} is {tuple(given[key].shape)} in the file and {tuple(expected[key].shape)} in this model"
        for key in expected
        if key in given and given[key].shape != expected[key].shape
    ]
    if problems:
        listed = "\n  ".join(problems[:20] + [f"... and {len(problems) - 20} more"] * (len(problems) > 20))
        raise ValueError(
            f"{source} does not fit this model: {len(problems)} entries differ (the model has {len(expected)}). Create the "
            "supervisor with the backbone, predictor and arguments of that run. To continue with its backbone only, load the "
            f"run without a data set and pass its get_backbone() to a new supervisor as backbone=.\n  {listed}"
        )


def dataset_state_keys(module: nn.Module) -> list[str]:
    """Keys of the state that belong to the images of one data set, such as the rows of a memory bank.

    A module lists the names of these buffers or submodules in its attribute ``dataset_state``.
    """
    modules = [(f"{name}." if name else "", part) for name, part in module.named_modules()]
    names = [prefix + own for prefix, part in modules for own in getattr(part, "dataset_state", ())]
    return [key for key in module.state_dict() if any(key == name or key.startswith(f"{name}.") for name in names)]
