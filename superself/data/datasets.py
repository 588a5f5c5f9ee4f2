"""Data sets by name: "photos:test", "cifar10", "stl10:unlabeled", "imagefolder:PATH"."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchvision import datasets

from superself.data.folders import find_files, folder_identity
from superself.data.images import Images
from superself.data.photographs import photos
from superself.data.sources import FileSource, TensorSource, stack_images
from superself.data.tiff import Planes
from superself.data.wording import printable

SPLITS = {"photos": ("train", "test"), "cifar10": ("train", "test"), "stl10": ("train", "test", "unlabeled")}
NAMES = '"photos", "cifar10", "stl10" (each with ":train", ":test" ...) and "imagefolder:PATH"'


def cifar10(split: str = "train", root: str | Path = "dataset", download: bool = False) -> Images:
    """CIFAR-10: 50,000 and 10,000 images of 32 x 32 in 10 classes, in ``root/cifar-10-batches-py``.

    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    Args:
        split: "train" or "test".
        root: the folder that contains the data set.
        download: download it (170 MB) if it is missing.
    Raises:
        FileNotFoundError: if it is missing.
    """
    _check_split("cifar10", split)
    data = _open_or_explain("cifar10", root, lambda: datasets.CIFAR10(root, split == "train", download=download))
    return Images(TensorSource(stack_images(data.data), data.targets, data.classes))


def stl10(split: str = "train", root: str | Path = "dataset", download: bool = False) -> Images:
    """STL-10: 5,000 and 8,000 images of 96 x 96 in 10 classes and 100,000 without labels, in ``root/stl10_binary``.

    Source: Coates, Lee & Ng, An Analysis of Single-Layer Networks in Unsupervised Feature Learning, 2011.
    Args:
        split: "train", "test" or "unlabeled".
        root: the folder that contains the data set.
        download: download it (2.6 GB) if it is missing.
    Raises:
        FileNotFoundError: if it is missing.
    """
    _check_split("stl10", split)
    data = _open_or_explain("stl10", root, lambda: datasets.STL10(root, split, download=download))
    labels = None if split == "unlabeled" else data.labels
    return Images(TensorSource(stack_images(data.data), labels, data.classes))


def named_source(
    name: str,
    size: tuple[int, int] | None = None,
    read: Callable[[Path], Any] | None = None,
    planes: Planes = None,
) -> FileSource | TensorSource | None:
    """The source with this name, or None if there is none.

    Args:
        name: the name, with the split after a colon; "train" if omitted.
        size: (H, W) that the images will be resized to; the photographs are cut at this size.
        read: f(path) -> image, for class folders with custom file formats.
        planes: which planes of TIFF stacks in class folders become channels.
    """
    name, _, rest = name.partition(":")
    if name == "imagefolder":
        return _class_folders(Path(rest).expanduser(), read, planes)
    if name not in SPLITS:
        return None
    split = rest or "train"
    _check_split(name, split)
    if name == "photos":
        return photos(split, max(size) if size else 64).source
    return (cifar10 if name == "cifar10" else stl10)(split).source


def _class_folders(path: Path, read: Callable[[Path], Any] | None, planes: Planes) -> FileSource:
    folders = sorted(folder for folder in path.glob("[!.]*") if folder.is_dir())
    owned = sorted(
        folders, key=lambda folder: (folder.is_symlink(), folder)
    )  # a folder belongs to one class, not to a link
    visited = {folder_identity(path): path} if folders else {}
    for folder in owned:
        visited.setdefault(folder_identity(folder), folder)
    inside_of = {folder: find_files(folder, read is not None, visited) for folder in owned}
    found = [inside_of[folder] for folder in folders]
    files = [inside.files for inside in found]
    if not any(files):
        raise ValueError(
            f"'{printable(str(path))}' has no folders with images in them; pass a folder with one subfolder per class."
        )
    labels = [label for label, inside in enumerate(files) for _ in inside]
    paths, classes = [file for inside in files for file in inside], [printable(folder.name) for folder in folders]
    left_out = {name: why for inside in found for name, why in inside.left_out.items()}
    return FileSource(paths, read, labels, classes, planes, left_out)


def _check_split(name: str, split: str) -> None:
    if split not in SPLITS[name]:
        raise ValueError(f"{name} has no split {split!r}; pass one of {', '.join(SPLITS[name])}.")


def _open_or_explain(name: str, root: str | Path, opener: Callable[[], Any]) -> Any:
    try:
        return opener()
    except RuntimeError as error:
        raise FileNotFoundError(
            f"{name} is not in {str(root)!r}, and data sets are only downloaded on request; run once: "
            f"python -c \"from superself.data import {name}; {name}(root='{root}', download=True)\""
        ) from error
