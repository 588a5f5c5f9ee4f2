"""Where images come from: files, a map-style data set, or a tensor. Each can be scanned, and read by place."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from superself.basics.random import preserve_random_state
from superself.data.batch import MASK_KEYS, TARGET_KEYS, are_classes, stack_targets
from superself.data.decode import (
    EXTENSIONS,
    Header,
    Planes,
    read_header,
    read_image,
    to_numpy,
    to_stored_dtype,
    to_tensor,
)

ITEM_KEYS = ("image", "img", "pixel_values")  # of dict items; without these keys, the first value is the image
FINGERPRINTED = 64  # images whose pixels are hashed, if they are not files
PROBED = 8  # items of a data set that are read when it is opened


class Sample(NamedTuple):
    """One image (C, H, W) with its target and mask; None where there is none."""

    image: Tensor
    target: Any = None
    mask: Tensor | None = None


class FileSource:
    """Image files.

    Args:
        paths: the files, in the order of their places.
        read: f(path) -> image, for custom formats; every file is then read once to find its size.
        targets: one per file, for example its class.
        classes: the names of the classes.
        planes: which planes of a TIFF stack become channels, as in ``read_image``.
    """

    repeatable = True

    def __init__(
        self,
        paths: Sequence[Path],
        read: Callable[[Path], Any] | None = None,
        targets: Any = None,
        classes: list[str] | None = None,
        planes: Planes = None,
    ) -> None:
        self.paths, self.custom_read, self.classes, self.planes = list(paths), read, classes, planes
        self.targets = as_targets(targets, len(self))

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, place: int) -> str:
        """The name of the image at a place in messages."""
        return str(self.paths[place])

    def scan(self) -> dict[int, Header | str]:
        """The header of every file, or why it cannot be read."""
        return dict(enumerate(map_in_threads(self._header, range(len(self)))))

    def read(self, place: int, size: tuple[int, int] | None) -> Sample:
        """The image at a place as (C, H, W); ``size`` is (H, W) that it will be resized to."""
        path = self.paths[place]
        return Sample(to_tensor(self.custom_read(path) if self.custom_read else read_image(path, size, self.planes)))

    def content(self) -> Iterator[bytes]:
        """The names of the files below the folder that holds them all, and their sizes."""
        if self.planes is not None:
            yield f"planes {self.planes}\n".encode()
        root = os.path.commonpath([path.absolute().parent for path in self.paths])
        for path in self.paths:
            size = path.stat().st_size if path.is_file() else -1
            yield f"{path.absolute().relative_to(root).as_posix()}:{size}\n".encode()

    def _header(self, place: int) -> Header | str:
        try:
            if self.custom_read:
                return header_of(self.read(place, None).image)
            return read_header(self.paths[place], self.planes)
        except Exception as error:  # reported by the caller, with the file
            return describe_error(error)


class ItemSource:
    """A map-style data set whose items are images, (image, target, ...) or {"image": ..., "target": ..., "mask": ...}.

    Args:
        items: anything with ``len()`` and items by number.
    """

    paths = None
    targets = None

    def __init__(self, items: Any) -> None:
        self.items = items
        self.classes = getattr(items, "classes", None)
        self.repeatable = True

    def __len__(self) -> int:
        return len(self.items)

    def name(self, place: int) -> str:
        """The name of the image at a place in messages."""
        return f"item {place}"

    def scan(self) -> dict[int, Header | str]:
        """The headers of a few items.

        Each is read twice: if the two differ, or if random numbers were drawn, items are random and not kept in memory.
        """
        found: dict[int, Header | str] = {}
        with preserve_random_state():
            before = _random_state()
            for place in evenly_spaced(PROBED, len(self)):
                try:
                    image, again = self.read(place, None)[0], self.read(place, None)[0]
                    found[place] = header_of(image)
                    self.repeatable &= torch.equal(image, again)
                except Exception as error:  # reported by the caller, with the item
                    found[place] = describe_error(error)
            self.repeatable &= pickle.dumps(before) == pickle.dumps(_random_state())
        return found

    def read(self, place: int, size: tuple[int, int] | None) -> Sample:
        """The image at a place as (C, H, W), with the item's target and mask."""
        item = self.items[place]
        image, target, mask = item, None, None
        if isinstance(item, Mapping):
            image = next(item[key] for key in (*ITEM_KEYS, *item) if key in item)
            target = next((item[key] for key in TARGET_KEYS if key in item), None)
            mask = next((item[key] for key in MASK_KEYS if key in item), None)
        elif isinstance(item, (tuple, list)):
            image, target = item[0], item[1] if len(item) > 1 else None
        return Sample(to_tensor(image), to_target(target), to_target(mask))

    def content(self) -> Iterator[bytes]:
        """The pixels of some items; nothing if items are random."""
        with preserve_random_state():
            for place in evenly_spaced(FINGERPRINTED, len(self)) if self.repeatable else ():
                try:
                    yield to_bytes(self.read(place, None).image)
                except Exception:  # reported when the item is needed
                    yield b"broken"


class TensorSource:
    """Images in memory.

    Args:
        data: (N, C, H, W) of a stored type.
        targets: one per image, for example its class.
        classes: the names of the classes.
    """

    paths = None
    repeatable = True

    def __init__(self, data: Tensor, targets: Any = None, classes: list[str] | None = None) -> None:
        self.data, self.classes = data, classes
        self.targets = as_targets(targets, len(self))

    def __len__(self) -> int:
        return len(self.data)

    def name(self, place: int) -> str:
        """The name of the image at a place in messages."""
        return f"item {place}"

    def scan(self) -> dict[int, Header]:
        """The header of the first image, which all others share."""
        return {0: header_of(self.data[0])}

    def content(self) -> Iterator[bytes]:
        """The pixels of some images."""
        yield from (to_bytes(self.data[place]) for place in evenly_spaced(FINGERPRINTED, len(self)))


def to_bytes(image: Tensor) -> bytes:
    """Shape, type and pixels of an image."""
    return f"{tuple(image.shape)} {image.dtype}".encode() + image.contiguous().numpy().tobytes()


def as_targets(values: Any, n: int) -> Tensor | list[Any] | None:
    """One target for each of n images: a tensor (n, ...) where they can be stacked, else a list; None stays None."""
    if values is None:
        return None
    if len(values) != n:
        raise ValueError(f"{len(values)} targets for {n} images; pass one target per image.")
    if isinstance(values, (Tensor, np.ndarray)):
        values = torch.as_tensor(values)
        return values.long() if are_classes(values) else values
    values = [to_target(value) for value in values]
    stacked = stack_targets(values)
    return stacked if isinstance(stacked, Tensor) else values


def to_target(value: Any) -> Any:
    """A target as a number or a tensor where it can be one: arrays, Pillow images and lists of numbers; else unchanged.

    Shape:
        a colour image (H, W, C) of Pillow -> (C, H, W); all others keep theirs.
    """
    if isinstance(value, Image.Image):
        pixels = torch.from_numpy(np.array(value))
        return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels
    if isinstance(value, (list, tuple)) and value and all(isinstance(number, (int, float)) for number in value):
        return torch.tensor(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, (Tensor, np.generic)) and value.ndim == 0:
        return value.item()
    return value


def describe_error(error: Exception) -> str:
    """Why an image cannot be read, for the list of skipped images."""
    return f"{type(error).__name__}: {error}"


def header_of(image: Tensor) -> Header:
    """The header of a decoded image (C, H, W)."""
    channels, height, width = image.shape
    return Header(height, width, channels, str(image.dtype).removeprefix("torch."))


def stack_images(images: np.ndarray | Tensor) -> Tensor:
    """An array (N, H, W), (N, H, W, C) or (N, C, H, W), or a tensor (N, H, W) or (N, C, H, W), as (N, C, H, W)."""
    if images.ndim not in (3, 4) or len(images) == 0:
        raise ValueError(
            f"images of shape {tuple(images.shape)} are not a data set; pass (N, H, W), (N, C, H, W) or, as an array, "
            "(N, H, W, C), with N >= 1."
        )
    if isinstance(images, Tensor):
        images = to_numpy(images)
    elif images.ndim == 4:
        if images.shape[1] == images.shape[3]:
            raise ValueError(
                f"cannot infer which axis of an array of shape {images.shape} holds the channels; "
                "pass torch.from_numpy(array) with the axes (N, C, H, W)."
            )
        if images.shape[3] < images.shape[1]:
            images = images.transpose(0, 3, 1, 2)
    data = torch.from_numpy(np.require(to_stored_dtype(images), requirements="CW"))
    return data.unsqueeze(1) if data.ndim == 3 else data


def find_files(folder: Path, any_extension: bool = False) -> list[Path]:
    """The image files in a folder and its subfolders, sorted; hidden files and folders are ignored."""
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if is_image_name(name, any_extension)]
    return sorted(found)


def is_image_name(name: str, any_extension: bool = False) -> bool:
    """Whether a file with this name is regarded as an image."""
    return not name.startswith(".") and (any_extension or Path(name).suffix.lower() in EXTENSIONS)


def evenly_spaced(n: int, total: int) -> list[int]:
    """Up to n of the places 0, ..., total - 1, evenly spaced."""
    return [place * total // min(n, total) for place in range(min(n, total))]


def available_cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_threads(function: Callable[[int], Any], places: Sequence[int]) -> Iterator[Any]:
    """``map`` in one thread per core; image decoders release the interpreter lock."""
    with ThreadPoolExecutor(available_cores()) as pool:
        yield from pool.map(function, places)


def _random_state() -> tuple:
    return random.getstate(), np.random.get_state(), torch.get_rng_state().numpy()
