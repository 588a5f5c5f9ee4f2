"""Files of a run: where they are, whether they can be written, and replacing one completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

RUN_FILES = (".yaml", ".csv", ".html", ".skipped.txt", ".best.pt", ".pt")  # of one run; archived in this order
REMEDY = "pass a name= in a folder with write permission and free space"


def checkpoint_path(name: str | Path) -> Path:
    """The file of the run ``name``: "store/base" is stored in store/base.pt."""
    path = Path(os.path.expanduser(name))  # "~name" of no user stays as it is
    if path.name in ("", ".."):
        raise ValueError(f"name={str(name)!r} has no file name; pass a name such as 'store/base'.")
    return path if path.suffix == ".pt" else path.with_name(path.name + ".pt")


def run_path(name: str | Path, ending: str) -> Path:
    """Another file of the run ``name``, next to its checkpoint: "store/base" and ".csv" give store/base.csv."""
    path = checkpoint_path(name)
    return path.with_name(path.name[: -len(".pt")] + ending)


def figure_endings(name: str | Path) -> list[str]:
    """The endings of the pictures of the run ``name``: ".knn.png" for store/base.knn.png, not those of other runs."""
    path = checkpoint_path(name)
    stem = path.name[: -len(".pt")]
    pattern = re.compile(re.escape(stem) + r"(\.[^\W\d]\w*\.png)")
    with contextlib.suppress(OSError):
        return sorted(found[1] for found in map(pattern.fullmatch, os.listdir(path.parent)) if found)
    return []


def discard_additions(name: str | Path) -> None:
    """Removes the pictures and the best checkpoint of a run that another one replaces."""
    for ending in (".best.pt", *figure_endings(name)):
        with contextlib.suppress(OSError):
            run_path(name, ending).unlink(missing_ok=True)


def require_writable(name: str | Path) -> Path:
    """Creates the folder of the run ``name``, tries to write there, and returns the path of its checkpoint.

    Raises:
        IsADirectoryError: if the path is a folder.
        OSError: if its folder cannot be created, or nothing can be written there.
    """
    path = checkpoint_path(name)
    if os.path.isdir(path):
        raise IsADirectoryError(
            f"Cannot write the checkpoint {path}: it is a folder; remove it, or pass another name=."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # a FileExistsError where a part of the path is a file
        trial = _temporary(Path(os.path.realpath(path)))
        try:
            with open(trial, "xb") as file:  # asking for the permission would not notice a read-only file system
                file.write(b"trial")
        finally:
            trial.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise unwritable(path, error) from error
    return path


def require_space(name: str | Path, nbytes: int, copies: int = 2) -> None:
    """Raises an OSError if ``copies`` checkpoints of ``nbytes`` bytes do not fit.

    Args:
        name: of the run, whose folder exists.
        nbytes: size of one checkpoint.
        copies: how many more there are at a time: 2, or 1 if a file is replaced, which is kept until the new one is complete.
    """
    path = checkpoint_path(name)
    free = shutil.disk_usage(os.path.dirname(os.path.realpath(path))).free
    if free < copies * nbytes:
        raise _os_error(
            OSError,
            errno.ENOSPC,
            f"Cannot write the checkpoint {path}: {copies} x {_size(nbytes)} are needed and {_size(free)} are free; free some "
            "space, or pass a name= on another disk.",
        )
    limit = _file_size_limit()
    if limit is not None and limit < nbytes:
        raise _os_error(
            OSError,
            errno.EFBIG,
            f"Cannot write the checkpoint {path}: it takes {_size(nbytes)} and this process may write files of at most "
            f"{_size(limit)}; raise the limit (ulimit -f unlimited).",
        )


def _file_size_limit() -> int | None:
    """The size in bytes that files of this process may have; None without a limit."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MB" if nbytes < 2**30 else f"{nbytes / 2**30:.1f} GB"


def unwritable(path: Path, error: BaseException) -> OSError:
    """An OSError that names the checkpoint, the reason and what to do; of the class of the original error if that is one."""
    cause = os_error_of(error)
    reason = error if cause is None else cause.strerror or cause
    if cause is not None and cause.errno == errno.ENAMETOOLONG:
        length = max(len(os.fsencode(part)) for part in path.parts)
        reason = f"{reason} (a part has {length} bytes; most file systems allow 255, of which temporary files need 14)"
    message = f"Cannot write the checkpoint {path}: {reason}; {REMEDY}."
    return _os_error(OSError, None, message) if cause is None else _os_error(type(cause), cause.errno, message)


def _os_error(kind: type[OSError], number: int | None, message: str) -> OSError:
    """With the number as an attribute, and not in the text."""
    error = kind(message)
    error.errno = number
    return error


def os_error_of(error: BaseException) -> OSError | None:
    """The OSError that ``error`` is or that caused it: torch reports a full disk as a RuntimeError of its zip writer."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, OSError):
        seen = seen.__cause__ or seen.__context__
    return seen


@contextlib.contextmanager
def replacing(path: Path, sync: bool = False) -> Iterator[BinaryIO]:
    """Opens a temporary file that takes the place of ``path`` when the block ends without an error, and is removed otherwise.

    ``path`` is the old or the new file, complete, at any time. A symbolic link stays one: the file that it leads to is
    replaced. Permissions are those of any new file of the user.

    Args:
        path: to write.
        sync: wait until the file and its name are on the disk, so that it also survives the machine.
    """
    target = Path(os.path.realpath(path))
    temporary = _temporary(target)
    try:
        with open(temporary, "xb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if sync:
        _sync_folder(target.parent)


def copy_completely(path: Path, target: Path) -> None:
    """Copies a file in a way that ``target`` is the old or the new one, complete, at any time."""
    with open(path, "rb") as file, replacing(target, sync=True) as copy:
        shutil.copyfileobj(file, copy, 2**20)


def write_text(path: Path, text: str) -> None:
    """Replaces a text file completely or not at all."""
    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))  # names of files may hold any bytes


def remove_leftovers(name: str | Path) -> None:
    """Removes the temporary files that killed processes left of the run ``name``; call it while holding its lock."""
    for ending in RUN_FILES:
        path = Path(os.path.realpath(run_path(name, ending)))
        temporary = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp")
        with contextlib.suppress(OSError):
            for entry in filter(temporary.fullmatch, os.listdir(path.parent)):
                (path.parent / entry).unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """An unused name next to ``path``."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not possible on Windows and some network file systems
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
