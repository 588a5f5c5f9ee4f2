"""Searching folders and patterns for image files: every real folder once, and regular files only."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from superself.data.decode import EXTENSIONS
from superself.data.retry import read_with_retries
from superself.data.wording import describe_error, printable

NOT_REGULAR = "not a regular file but a pipe, socket or device"


class FoundFiles(NamedTuple):
    """Image files in sorted order, and what was left out, as printable name -> reason."""

    files: list[Path]
    left_out: dict[str, str]


def find_files(
    folder: Path, any_extension: bool = False, visited: dict[tuple[int, int], Path] | None = None
) -> FoundFiles:
    """The image files in a folder and its subfolders; hidden files and folders are ignored.

    A folder that several links lead to is read once, by its own path if that is inside ``folder``.

    Args:
        folder: where to search.
        any_extension: take every regular file.
        visited: folders that were read already, by device and number; those that are read now are added.
    """
    files: list[Path] = []
    left_out: dict[str, str] = {}
    visited = {} if visited is None else visited
    folders, links = [Path(folder)], []  # links to folders come last, so that paths without links win
    while folders or links:
        parent = folders.pop() if folders else links.pop(links.index(min(links)))
        try:
            first = visited.setdefault(folder_identity(parent), parent)
            if first != parent:
                left_out[printable(str(parent))] = f"a link to {printable(str(first))}, which is read already"
                continue
            entries = read_with_retries(lambda parent=parent: _entries(parent))
        except OSError as error:
            left_out[printable(str(parent))] = f"the folder cannot be read ({describe_error(error)})"
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append(Path(entry.path))
            elif is_image_name(entry.name, any_extension):
                _sort_in(Path(entry.path), entry.is_file(), files, left_out)
    return FoundFiles(sorted(files), left_out)


def folder_identity(folder: Path) -> tuple[int, int]:
    """Device and number of a folder, which all links to it share."""
    status = read_with_retries(folder.stat)
    return status.st_dev, status.st_ino


def match_files(pattern: str, any_extension: bool = False) -> FoundFiles:
    """The image files that a glob pattern matches; ``**`` stands for any number of folders, each of which is read once."""
    parts = Path(pattern).parts
    if "**" in parts:
        fixed = next(place for place, part in enumerate(parts) if glob.has_magic(part))
        root, rest = Path(*parts[:fixed]), parts[fixed:]
        found = find_files(root, any_extension)
        return found._replace(files=[file for file in found.files if _matches(file.relative_to(root).parts, rest)])
    files: list[Path] = []
    left_out: dict[str, str] = {}
    for match in sorted(map(Path, glob.glob(pattern))):
        if is_image_name(match.name, any_extension) and not match.is_dir():
            _sort_in(match, match.is_file(), files, left_out)
    return FoundFiles(files, left_out)


def is_image_name(name: str, any_extension: bool = False) -> bool:
    """Whether a file with this name is regarded as an image."""
    return not name.startswith(".") and (any_extension or Path(name).suffix.lower() in EXTENSIONS)


def _sort_in(path: Path, regular: bool, files: list[Path], left_out: dict[str, str]) -> None:
    """Takes a regular file; a link to a file that is missing counts as a broken image, since one was meant to be there."""
    if regular or (path.is_symlink() and not path.exists()):
        files.append(path)
    else:
        left_out[printable(str(path))] = NOT_REGULAR


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (len(parts) > 0 and _matches(parts[1:], pattern))
    return len(parts) > 0 and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
