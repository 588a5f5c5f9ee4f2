"""Where images come from: files, a map-style data set, or a tensor. Each can be scanned, and read by place."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from superself.basics.random import preserve_random_state
from superself.data.batch import MASK_KEYS, TARGET_KEYS, are_classes, stack_targets
from superself.data.decode import read_header, read_image
from superself.data.pixels import (
    Header,
    channel_axis_is_ambiguous,
    from_array,
    require_finite,
    to_numpy,
    to_stored_dtype,
    to_tensor,
)
from superself.data.retry import PassingReason, is_input_output_error, read_with_retries
from superself.data.tiff import Planes
from superself.data.wording import describe_error, printable

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
        left_out: what the search for files left out, as printable name -> reason.
    """

    repeatable = True

    def __init__(
        self,
        paths: Sequence[Path],
        read: Callable[[Path], Any] | None = None,
        targets: Any = None,
        classes: list[str] | None = None,
        planes: Planes = None,
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        self.paths, self.custom_read, self.classes, self.planes = list(paths), read, classes, planes
        self.left_out = dict(left_out or {})
        self.targets = as_targets(targets, len(self))

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, place: int) -> str:
        """The name of the image at a place in messages."""
        return printable(str(self.paths[place]))

    def reason(self, error: Exception) -> str:
        """Why an image cannot be read; a ``PassingReason`` if it may be readable later."""
        text = describe_error(error)
        return PassingReason(text) if is_input_output_error(error) else text

    def scan(self) -> dict[int, Header | str]:
        """The header of every file, or why it cannot be read."""
        return dict(enumerate(map_in_threads(self._header, range(len(self)))))

    def read(self, place: int, size: tuple[int, int] | None) -> Sample:
        """The image at a place as (C, H, W); ``size`` is (H, W) that it will be resized to."""
        path = self.paths[place]
        return Sample(
            to_tensor(self.custom_read(path)) if self.custom_read else from_array(read_image(path, size, self.planes))
        )

    def content(self) -> Iterator[bytes]:
        """The names of the files below the folder that holds them all, and their sizes."""
        if self.planes is not None:
            yield f"planes {self.planes}\n".encode()
        root = os.path.commonpath([path.absolute().parent for path in self.paths])
        for path in self.paths:
            name = f"{path.absolute().relative_to(root).as_posix()}:{_file_size(path)}\n"
            yield name.encode("utf-8", "surrogateescape")  # names need not be UTF-8

    def _header(self, place: int) -> Header | str:
        try:
            if self.custom_read:
                return header_of(read_with_retries(lambda: self.read(place, None)).image)
            return read_with_retries(lambda: read_header(self.paths[place], self.planes))
        except Exception as error:  # reported by the caller, with the file
            return self.reason(error)


class ItemSource:
    """A map-style data set whose items are images, (image, target, ...) or {"image": ..., "target": ..., "mask": ...}.

    Args:
        items: anything with ``len()`` and items by number.
    """

    paths = None
    targets = None
    left_out: Mapping[str, str] = {}

    def __init__(self, items: Any) -> None:
        self.items = items
        self.classes = getattr(items, "classes", None)
        self.repeatable = True

    def __len__(self) -> int:
        return len(self.items)

    def name(self, place: int) -> str:
        """The name of the image at a place in messages."""
        return f"item {place}"

    def reason(self, error: Exception) -> str:
        """Why an item cannot be read; its code may succeed the next time."""
        return PassingReason(describe_error(error))

    def scan(self) -> dict[int, Header | str]:
        """The headers of a few items.

        Each is read twice: if the two differ, or if random numbers were drawn, items are random and not kept in memory.

        Raises:
            ValueError: if the data set has fewer items than its length says.
        """
        found: dict[int, Header | str] = {}
        with preserve_random_state():
            self._check_length()
            before = _random_state()
            for place in evenly_spaced(PROBED, len(self)):
                try:
                    image, again = (read_with_retries(lambda p=place: self.read(p, None)).image for _ in range(2))
                    require_finite(image)
                    found[place] = header_of(image)
                    self.repeatable &= torch.equal(image, again)
                except Exception as error:  # reported by the caller, with the item
                    found[place] = self.reason(error)
            self.repeatable &= pickle.dumps(before) == pickle.dumps(_random_state())
        return found

    def read(self, place: int, size: tuple[int, int] | None) -> Sample:
        """The image at a place as (C, H, W), with the item's target and mask."""
        item = self.items[place]
        image, target, mask = item, None, None
        if item is None or (isinstance(item, (Mapping, tuple, list)) and len(item) == 0):
            raise ValueError(f"the item is {item!r}; return an image, (image, target) or a dict from the data set")
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

    def _check_length(self) -> None:
        last = len(self) - 1
        try:
            self.items[last]
        except IndexError as error:
            raise ValueError(
                f"the data set has len() {last + 1}, but its last item, {last}, raises an IndexError ({error}); correct its "
                "__len__."
            ) from error
        except Exception:  # a broken item is reported when it is needed
            return


class TensorSource:
    """Images in memory.

    Args:
        data: (N, C, H, W) of a stored type.
        targets: one per image, for example its class.
        classes: the names of the classes.
    """

    paths = None
    repeatable = True
    left_out: Mapping[str, str] = {}

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
    if not isinstance(values, Sized) or np.ndim(values) == 0 and isinstance(values, (Tensor, np.ndarray)):
        raise TypeError(
            f"targets are a {type(values).__name__}; pass one target per image: a list, an array or a tensor."
        )
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


def header_of(image: Tensor) -> Header:
    """The header of a decoded image (C, H, W)."""
    channels, height, width = image.shape
    return Header(height, width, channels, str(image.dtype).removeprefix("torch."))


def stack_images(images: np.ndarray | Tensor) -> Tensor:
    """An array (N, H, W), (N, H, W, C) or (N, C, H, W), or a tensor (N, H, W) or (N, C, H, W), as (N, C, H, W)."""
    if images.ndim not in (3, 4) or 0 in images.shape:
        hint = "; pass images of several sizes, or paths, as a list" if images.ndim == 1 else ""
        raise ValueError(
            f"images of shape {tuple(images.shape)} are not a data set; pass (N, H, W), (N, C, H, W) or, as an array, "
            f"(N, H, W, C), with N >= 1 and no side of length 0{hint}."
        )
    if isinstance(images, Tensor):
        images = to_numpy(images)
    elif images.ndim == 4:
        if channel_axis_is_ambiguous(images.shape[1], images.shape[3]):
            raise ValueError(
                f"cannot infer which axis of an array of shape {images.shape} holds the channels; "
                "pass torch.from_numpy(array) with the axes (N, C, H, W)."
            )
        if images.shape[3] < images.shape[1]:
            images = images.transpose(0, 3, 1, 2)
    data = torch.from_numpy(np.require(to_stored_dtype(images), requirements="CW"))
    return data.unsqueeze(1) if data.ndim == 3 else data


def evenly_spaced(n: int, total: int) -> list[int]:
    """Up to n of the places 0, ..., total - 1, evenly spaced."""
    return [place * total // min(n, total) for place in range(min(n, total))]


def available_cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_threads(function: Callable[[int], Any], places: Sequence[int]) -> Iterator[Any]:
    """``map`` in one thread per core; image decoders release the interpreter lock."""
    pool = ThreadPoolExecutor(available_cores())
    try:
        yield from pool.map(function, places)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C or an error, do not wait for a read that hangs


def _file_size(path: Path) -> int:
    """Bytes of a file; -1 if it is missing or cannot be asked."""
    try:
        return read_with_retries(path.stat).st_size if path.is_file() else -1
    except OSError:
        return -1


def _random_state() -> tuple:
    return random.getstate(), np.random.get_state(), torch.get_rng_state().numpy()
