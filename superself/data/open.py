"""open_images: opens everything that can be a data set."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from superself.basics.validate import require_count
from superself.data.datasets import NAMES, named_source
from superself.data.folders import FoundFiles, find_files, match_files
from superself.data.images import MEMORY_LIMIT, Images, ImageSpec
from superself.data.labels import Labelled, check_length, label_files, number_labels
from superself.data.pixels import MAX_IMAGE_BYTES
from superself.data.reading import Reading
from superself.data.sources import FileSource, ItemSource, TensorSource, as_targets, stack_images
from superself.data.tiff import Planes
from superself.data.wording import format_broken, printable

Reader = Callable[[Path], Any]
DEFAULT_FOLDER = Path("dataset")


def open_images(
    source: Any,
    *,
    image_size: int | tuple[int, int] | None = None,
    on_bad_image: str = "skip",
    read: Reader | None = None,
    memory_limit: int = MEMORY_LIMIT,
    planes: str | int | tuple[int, ...] | None = None,
    norm: float | None = None,
    num_channels: int | None = None,
    single_channel: bool = False,
) -> Images:
    """Opens a data set of any kind and finds out the sizes of its images without decoding them all.

    Args:
        source: a folder (searched to any depth, each folder once), a file, a glob pattern, a list of paths; a name
            ("photos:test", "cifar10", "stl10:unlabeled", "imagefolder:PATH"); an array (N, H, W), (N, H, W, C) or
            (N, C, H, W), a tensor (N, H, W) or (N, C, H, W), or a tuple of one of these and N targets; a map-style torch
            Dataset or a list, whose items are images, (image, target) or dicts with "image", "target" or "label", and
            "mask"; ``Labelled(images, labels)`` for labels from a table; None for the folder ``dataset``, if it holds
            images. A folder wins over a name. An ``Images`` is returned unchanged.
        image_size: one number or (height, width). Images are resized to cover it and cropped at the centre.
        on_bad_image: "skip" goes on until more than 5 % are broken, "raise" stops at the first.
        read: f(path) -> Pillow image, array (H, W[, C]) or tensor (C, H, W), for custom file formats, and for images of
            more than 1 GiB, which are refused without it. Called from several threads, and once for every file when the
            data set is opened.
        memory_limit: bytes up to which ``load`` decodes the images into memory.
        planes: which planes of TIFF stacks become channels: "channels" for all, a number or a tuple of numbers for
            some. None reads all planes as channels if the file says that they are, and refuses other stacks.
        norm: value that pixels are divided by to reach [0, 1], for example 10000 for 16-bit GeoTIFFs, or the largest value of
            floating-point images; None divides 8 bits by 255 and 16 bits by 65535.
        num_channels: keeps the first channels of images that have more, for example 3 of RGBA.
        single_channel: the images have one channel, which is repeated ``num_channels`` times (3 if that is None).
    Raises:
        ValueError: if the source is not one of these, holds no images, or its images do not agree.
        FileNotFoundError: if a path does not exist.
    """
    if isinstance(source, Images):
        given = (image_size, on_bad_image, read, memory_limit, planes, norm, num_channels, single_channel)
        if given != (None, "skip", None, MEMORY_LIMIT, None, None, None, False):
            raise ValueError("this data set is open already; pass image_size and the other options when opening it.")
        return source
    size = None if image_size is None else check_size("image_size", image_size)
    planes = _check_planes(planes)
    reading = Reading.of(norm, num_channels, single_channel)
    require_count("memory_limit", memory_limit, "is a number of bytes, for example 8 * 2**30", minimum=0)
    if read is not None and not callable(read):
        raise TypeError(f"read={read!r} cannot be called; pass a function from a path to an image.")
    if source is None and not (DEFAULT_FOLDER.is_dir() and find_files(DEFAULT_FOLDER, read is not None).files):
        return ImageSpec()
    opened = _make_source(DEFAULT_FOLDER if source is None else source, size, read, planes)
    if read is not None and not isinstance(opened, FileSource):
        raise ValueError(f"read= is for files, and this data set is a {type(source).__name__}; leave it out.")
    if planes is not None and not isinstance(opened, FileSource):
        raise ValueError(f"planes= is for TIFF files, and this data set is a {type(source).__name__}; leave it out.")
    if planes is not None and read is not None:
        raise ValueError("planes= is for TIFF files that are read without read=; pass only one of the two.")
    return Images(opened, size, on_bad_image, memory_limit, reading)


def check_size(name: str, size: Any) -> tuple[int, int]:
    """A size in pixels, one number or (height, width), as (height, width).

    Raises:
        ValueError: if it is neither.
    """
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    whole = all(isinstance(side, Integral) and not isinstance(side, bool) for side in pair)
    if len(pair) != 2 or not whole or min(pair) < 1:
        raise ValueError(f"{name}={size!r} is not a size; pass one number of pixels or (height, width).")
    if 3 * int(pair[0]) * int(pair[1]) > MAX_IMAGE_BYTES:
        raise ValueError(
            f"{name}={size!r} gives images of {3 * int(pair[0]) * int(pair[1]) / 2**30:.0f} GiB, more than the "
            f"{MAX_IMAGE_BYTES / 2**30:.3g} GiB that one image may take; pass a smaller size."
        )
    return int(pair[0]), int(pair[1])


def _check_planes(planes: Any) -> Planes:
    if planes is None or planes == "channels":
        return planes
    chosen = tuple(planes) if isinstance(planes, (tuple, list)) else (planes,)
    if not chosen or not all(type(plane) is int and plane >= 0 for plane in chosen):
        raise ValueError(f'planes={planes!r} is unknown; pass "channels", a number or a tuple of numbers from 0 on.')
    return chosen


def _make_source(
    source: Any, size: tuple[int, int] | None, read: Reader | None, planes: Planes
) -> FileSource | ItemSource | TensorSource:
    if isinstance(source, Labelled):
        return _with_labels(_make_source(source.images, size, read, planes), source)
    if isinstance(source, type):
        raise ValueError(f"{source.__name__} is a class; pass an instance of it, {source.__name__}(...).")
    if isinstance(source, (np.ndarray, Tensor)):
        return TensorSource(stack_images(source))
    if isinstance(source, (bytes, bytearray)):
        raise ValueError(f"a path of type {type(source).__name__} is not text; pass os.fsdecode(path).")
    if isinstance(source, Mapping):
        raise ValueError(
            f"a {type(source).__name__} with {len(source)} keys has no items by number; pass a list of its images, or "
            "(images, targets)."
        )
    if isinstance(source, (str, Path)):
        return _source_of_text(str(source), size, read, planes)
    if isinstance(source, (list, tuple)) and source:
        if all(isinstance(item, (str, Path)) for item in source):
            missing = [printable(str(path)) for path in source if not Path(path).is_file()]
            if missing:
                raise FileNotFoundError(
                    f"{len(missing)} of {len(source)} paths are not files, the first is {missing[0]}; pass existing regular "
                    "files."
                )
            return FileSource([Path(path) for path in source], read, planes=planes)
        if isinstance(source, tuple) and _starts_with_images(source):
            if len(source) != 2:
                raise ValueError(
                    f"a tuple of {len(source)} starts with an array of images; pass (images, targets), "
                    "or torch.utils.data.TensorDataset(images, ...)."
                )
            return TensorSource(stack_images(source[0]), source[1])
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        return ItemSource(source)
    hint = "its .dataset" if hasattr(source, "dataset") else "a folder, a list of paths, an array, a tensor"
    raise ValueError(
        f"a {type(source).__name__} has no length or no items by number; pass {hint} or a map-style torch Dataset."
    )


def _with_labels(
    opened: FileSource | ItemSource | TensorSource, source: Labelled
) -> FileSource | ItemSource | TensorSource:
    """The source with labels from a table."""
    if opened.paths is not None:
        found = label_files(opened.paths, source)
        left_out = {opened.name(place): "no label in the table" for place in found.omitted}
        paths, left_out = [opened.paths[place] for place in found.kept], {**opened.left_out, **left_out}
        return FileSource(paths, opened.custom_read, found.labels, found.classes, opened.planes, left_out)
    numbers, classes = number_labels(check_length(source.labels, len(opened)))
    if isinstance(opened, TensorSource):
        return TensorSource(opened.data, numbers, classes)
    opened.targets, opened.classes = as_targets(numbers, len(opened)), classes
    return opened


def _starts_with_images(source: tuple[Any, ...]) -> bool:
    """Whether the first part is an array of images; a tuple of single images is a data set of them."""
    first, *rest = source
    if not isinstance(first, (np.ndarray, Tensor)):
        return False
    return first.ndim == 4 or (first.ndim == 3 and len(rest) == 1 and np.ndim(rest[0]) == 1)


def _source_of_text(
    text: str, size: tuple[int, int] | None, read: Reader | None, planes: Planes
) -> FileSource | TensorSource:
    """What a string means: a folder or a file, else a name, else a glob pattern."""
    if not text:
        raise ValueError('an empty string is not a data set; pass a folder, "." for the current one.')
    path, any_extension = Path(text).expanduser(), read is not None
    try:
        is_file, is_folder, exists = path.is_file(), path.is_dir(), path.exists()
    except OSError:  # a text that is too long for a path
        is_file = is_folder = exists = False
    if is_file:
        return FileSource([path], read, planes=planes)
    if is_folder:
        found = find_files(path, any_extension)
    elif exists:
        raise ValueError(f"'{printable(text)}' is a pipe, socket or device; pass a folder or an image file.")
    elif (source := named_source(text, size, read, planes)) is not None:
        return source
    elif glob.has_magic(text):
        found = match_files(str(path), any_extension)
    else:
        raise FileNotFoundError(
            f"'{printable(text)}' is neither an existing path nor the name of a data set; pass a path that exists, or one of "
            f"{NAMES}."
        )
    return FileSource(require_files(found, text), read, planes=planes, left_out=found.left_out)


def require_files(found: FoundFiles, text: str) -> list[Path]:
    """The files that were found.

    Raises:
        ValueError: if there are none; says what was left out.
    """
    if not found.files:
        left_out = f" (left out: {format_broken(found.left_out)})" if found.left_out else ""
        raise ValueError(
            f"no image files in '{printable(text)}'{left_out}; pass a folder or pattern with images in it."
        )
    return found.files
