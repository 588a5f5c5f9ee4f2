"""open_images: the one door for everything that can be a data set."""

from __future__ import annotations

import glob
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from superself.data.datasets import NAMES, named_source
from superself.data.images import MEMORY_LIMIT, Images, ImageSpec
from superself.data.sources import FileSource, ItemSource, TensorSource, find_files, is_image_name, stack_images

Reader = Callable[[Path], Any]
DEFAULT_FOLDER = Path("dataset")


def open_images(
    source: Any,
    *,
    image_size: int | tuple[int, int] | None = None,
    on_bad_image: str = "skip",
    read: Reader | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> Images:
    """Opens a data set, whatever it is given as, and learns the sizes of its images without decoding them all.

    Args:
        source: a folder (searched to any depth), a file, a glob pattern, a list of paths; a name ("photos:test",
            "cifar10", "stl10:unlabeled", "imagefolder:PATH"); an array (N, H, W), (N, H, W, C) or (N, C, H, W), a
            tensor (N, H, W) or (N, C, H, W); a map-style torch Dataset or a list, whose items are images or start with
            one; None for the folder ``dataset``, if it holds images. A folder wins over a name. An ``Images`` is
            returned as it is.
        image_size: one number or (height, width). Images are resized to cover it and cropped at the centre.
        on_bad_image: "skip" goes on until more than 5 % are broken, "raise" stops at the first.
        read: f(path) -> Pillow image, array (H, W[, C]) or tensor (C, H, W), for file formats of one's own. Called
            from several threads, and once for every file when the data set is opened.
        memory_limit: bytes up to which ``load`` decodes the images into memory.
    Raises:
        ValueError: if the source is not one of these, holds no images, or its images do not agree.
        FileNotFoundError: if a path does not exist.
    """
    if isinstance(source, Images):
        if (image_size, on_bad_image, read, memory_limit) != (None, "skip", None, MEMORY_LIMIT):
            raise ValueError("this data set is open already; pass image_size and the other options when opening it.")
        return source
    size = _pair(image_size)
    if source is None and not (DEFAULT_FOLDER.is_dir() and find_files(DEFAULT_FOLDER, read is not None)):
        return ImageSpec()
    made = _source(DEFAULT_FOLDER if source is None else source, size, read)
    if read is not None and not isinstance(made, FileSource):
        raise ValueError(f"read= is for files, and this data set is a {type(source).__name__}; leave it out.")
    return Images(made, size, on_bad_image, memory_limit)


def _pair(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    pair = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"image_size={image_size!r} is no size; pass one number of pixels or (height, width).")
    return pair


def _source(source: Any, size: tuple[int, int] | None, read: Reader | None) -> FileSource | ItemSource | TensorSource:
    if isinstance(source, (np.ndarray, Tensor)):
        return TensorSource(stack_images(source))
    if isinstance(source, (str, Path)):
        return _source_of_text(str(source), size, read)
    if isinstance(source, (list, tuple)) and source and all(isinstance(item, (str, Path)) for item in source):
        missing = [str(path) for path in source if not Path(path).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(source)} paths are no files, the first is {missing[0]}; pass existing files."
            )
        return FileSource([Path(path) for path in source], read)
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        return ItemSource(source)
    raise ValueError(
        f"a {type(source).__name__} has no length or no items by number; pass a folder, a list of paths, an array, "
        "a tensor or a map-style torch Dataset."
    )


def _source_of_text(text: str, size: tuple[int, int] | None, read: Reader | None) -> FileSource | TensorSource:
    """What a string means: a folder or a file, else a name, else a glob pattern."""
    path, any_extension = Path(text).expanduser(), read is not None
    if path.is_file():
        return FileSource([path], read)
    if path.is_dir():
        files = find_files(path, any_extension)
    elif (source := named_source(text, size, read)) is not None:
        return source
    elif glob.has_magic(text):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        files = [match for match in matches if match.is_file() and is_image_name(match.name, any_extension)]
    else:
        raise FileNotFoundError(f"{text!r} is no folder, file or name; pass a path that exists, or one of {NAMES}.")
    if not files:
        raise ValueError(f"no image files in {text!r}; pass a folder or pattern with images in it.")
    return FileSource(files, read)
