"""Images: a data set of equally sized images, in memory or on disk."""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from superself.basics.random import preserve_random_state
from superself.basics.validate import require_choice
from superself.data.agreement import BROKEN_SHARE, find_common
from superself.data.batch import Batch, Item, are_classes, stack_targets
from superself.data.pixels import Header, find_not_finite, require_finite
from superself.data.reading import Reading
from superself.data.resize import conform_image, resize_mask_to_cover, resize_to_cover
from superself.data.retry import PassingReason, read_with_retries
from superself.data.sources import (
    FileSource,
    ItemSource,
    Sample,
    TensorSource,
    evenly_spaced,
    map_in_threads,
)
from superself.data.wording import describe_error, format_broken, format_bytes

MEMORY_LIMIT = 2 * 2**30  # bytes
_passes = itertools.count()  # over any data set, so that each has its own number
MANY = 2**26  # images; more are never decoded in advance
DEVICE_SHARE = 0.25  # of an accelerator's free memory, that a copy of the data set may take


class Images(Dataset):
    """Images of one size and type, each with a fixed place (index) in the data set; made by ``open_images``.

    A broken image keeps its place and is replaced by the next image that can be read, so that length and order do not
    depend on broken images, nor on whether the data set is in memory. ``Batch.index`` holds the place of the image that
    was delivered.

    An image is broken if it cannot be read, has other channels or another type than the others, or values that are not
    finite. One that fails for a reason that may pass, such as a network drive, is tried again in the next epoch.

    Args:
        source: where the images come from.
        image_size: (H, W) to resize to; None requires images of equal size.
        on_bad_image: "skip" replaces broken images until they are more than 5 %, "raise" stops at the first.
        memory_limit: bytes up to which ``load`` decodes the images into memory.
        reading: what is done to the pixels of every image when it is read; None for nothing.
    Raises:
        ValueError: if too many images are broken, or if their sizes, channels or types differ.
    """

    def __init__(
        self,
        source: FileSource | ItemSource | TensorSource,
        image_size: tuple[int, int] | None = None,
        on_bad_image: str = "skip",
        memory_limit: int = MEMORY_LIMIT,
        reading: Reading | None = None,
    ) -> None:
        require_choice("on_bad_image", on_bad_image, ("skip", "raise"))
        if len(source) == 0:
            raise ValueError("the data set has no images; pass one with at least one image.")
        self.source, self.on_bad_image, self.memory_limit = source, on_bad_image, memory_limit
        self.paths: list[Path] | None = source.paths
        self.classes: list[str] | None = source.classes
        self.targets: Tensor | list[Any] | None = source.targets  # one per image; of items they are known after load()
        self._masks: Tensor | list[Any] | None = None  # one per image, after load()
        self._broken: dict[int, str] = {}  # place -> reason, now
        self._failed: set[int] = set()  # places that could not be read and may be later: not worth waiting for again
        self._pass: int | None = None  # see ``begin_pass``
        found = source.scan()
        headers = {place: header for place, header in found.items() if isinstance(header, Header)}
        broken = {place: why for place, why in found.items() if isinstance(why, str)}
        if not headers:
            raise ValueError(f"none of the images can be read: {format_broken(self._named(broken))}.")
        self.report_broken(broken)
        self.reading = reading
        read = headers if reading is None else {place: reading.header(header) for place, header in headers.items()}
        common = find_common(read, source.name, any_size=image_size is not None)
        if reading is not None:
            reading.check({header.channels for header in headers.values()}, common.channels)
        self.report_broken(common.outliers)
        self.shape: tuple[int, int, int] = (common.channels, *(image_size or common.small))
        self._stored_dtype: torch.dtype = getattr(torch, common.dtype)
        self.dtype = self._stored_dtype if reading is None else reading.dtype(self._stored_dtype)
        self._sizes = (common.small, common.large)
        self._resized = image_size is not None
        self._data: Tensor | None = None  # (N, C, H, W) when in memory
        self._on_device: Tensor | None = None  # a copy of it on an accelerator
        self._delivered_places: Tensor | None = None  # (N,) place delivered for each place, if some are broken
        if isinstance(source, TensorSource):
            self._data = source.data
            if source.data.shape[2:] != self.shape[1:]:
                self._data = torch.cat([resize_to_cover(part, self.shape[1:]) for part in source.data.split(256)])
            self._data = self._data if reading is None else reading(self._data).contiguous()
            self._replace_broken(find_not_finite(self._data))

    @property
    def in_memory(self) -> bool:
        """Whether the images are decoded and in memory; see ``load``."""
        return self._data is not None

    @property
    def nbytes(self) -> int:
        """Bytes that all images take in memory."""
        return len(self) * math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: int) -> tuple[Tensor, Any] | Tensor:
        """(image (C, H, W), target), or the image alone if it has no target."""
        item = self.items([range(len(self))[place]])[0][0]  # range() handles negative and too large numbers
        return item.image if item.target is None else (item.image, item.target)

    @property
    def labels(self) -> Tensor | None:
        """The class of each image (N,) int64; None if targets are not classes, or not known before ``load``."""
        return self.targets if are_classes(self.targets) else None

    @cached_property
    def names(self) -> list[str]:
        """The name of each image in messages and records: its path, or "item 3"."""
        return [self.source.name(place) for place in range(len(self))]

    @cached_property
    def fingerprint(self) -> str:
        """A hash that identifies the images and their order; independent of ``image_size`` and of ``load``.

        For files it covers the names below their common folder and the file sizes, so a moved folder keeps its
        fingerprint. For arrays, tensors and torch data sets it covers the pixels of 64 images, and for items that are
        random only their number, shape and type.
        """
        small, large = self._sizes
        known = (len(self), self.shape[0], str(self.dtype), small if small == large else None)
        found = hashlib.sha256(repr(known).encode())
        for part in self.source.content():
            found.update(part)
        return found.hexdigest()[:32]

    @property
    def skipped(self) -> dict[str, str]:
        """What cannot be read now, and what the search for files left out, as name -> reason."""
        return {**self.source.left_out, **self._named(self._broken)}

    @property
    def broken(self) -> dict[int, str]:
        """The images that cannot be read now, as place -> reason."""
        return dict(self._broken)

    def broken_places(self) -> Tensor:
        """The places of the images known to be broken, (n,) int64; decoding may find more."""
        return torch.tensor(sorted(self._broken), dtype=torch.int64)

    def begin_pass(self, number: int | None = None) -> int:
        """Tells that a pass over the data begins: images whose reason may pass are given another chance, and counted again.

        Args:
            number: of the pass, of which nothing happens if it began already; None begins a new one.
        Returns:
            The number of the pass.
        """
        number = next(_passes) if number is None else number
        if number != self._pass:
            self._pass = number
            self._broken = {p: why for p, why in self._broken.items() if not isinstance(why, PassingReason)}
        return number

    def _named(self, broken: Mapping[int, str]) -> dict[str, str]:
        return {self.source.name(place): why for place, why in broken.items()}

    def batch(self, places: Sequence[int] | Tensor) -> Batch:
        """The images at the given places, (B,) or a list; broken ones are replaced as the class describes."""
        if self._data is None:
            items, broken = self.items(places)
            index = torch.tensor([item.index for item in items], dtype=torch.int64)
            target = stack_targets([item.target for item in items])
            mask = stack_targets([item.mask for item in items])
            return Batch(torch.stack([item.image for item in items]), index, target, mask, broken=broken)
        index = self._places_delivered(places)
        data = self._data if self._on_device is None else self._on_device
        images = data.index_select(0, index.to(data.device, non_blocking=True))
        return Batch(images, index, _gather(self.targets, index), _gather(self._masks, index))

    def items(self, places: Sequence[int] | Tensor) -> tuple[list[Item], dict[int, str]]:
        """The images at the given places one by one, and the broken images that were found, as place -> reason."""
        if self._data is not None:
            index = self._places_delivered(places)
            data = self._data if self._on_device is None else self._on_device
            images = data.index_select(0, index.to(data.device, non_blocking=True)).cpu()
            places = index.tolist()
            targets, masks = (
                [None if values is None else values[place] for place in places]
                for values in (self.targets, self._masks)
            )
            targets = [_number(target) for target in targets]
            return [Item(*parts) for parts in zip(images, places, targets, masks, strict=True)], {}
        threads = self.paths is not None and get_worker_info() is None
        found = list((map_in_threads if threads else map)(self._read_or_replace, torch.as_tensor(places).tolist()))
        return [item for item, _ in found], {place: why for _, broken in found for place, why in broken.items()}

    def load(self) -> Images:
        """Decodes all images into memory, unless they exceed ``memory_limit`` or differ from one read to the next."""
        if self.in_memory or not self.source.repeatable or self.nbytes > self.memory_limit or len(self) > MANY:
            return self
        data = torch.empty((len(self), *self.shape), dtype=self.dtype)

        def store(place: int) -> Sample | str:
            sample = self._read(place)
            if isinstance(sample, str):
                return sample
            data[place] = sample.image
            return sample._replace(image=None)

        found = list((map if self.paths is None else map_in_threads)(store, range(len(self))))
        broken = {
            place: f"{why}" for place, why in enumerate(found) if isinstance(why, str)
        }  # for good: they are not read again
        self._replace_broken(broken)
        delivered = self._places_delivered(torch.arange(len(self))).tolist()
        if self.targets is None:
            self.targets = _stack_or_list([found[place].target for place in delivered])
            if self.labels is not None:
                self.targets[list(broken)] = -1
        self._masks = _stack_or_list([found[place].mask for place in delivered])
        self._data = data
        return self

    def with_masks(self, masks: Tensor) -> Images:
        """The same images, which must be in memory, delivered with these masks (N, H, W) in place of their own."""
        images = copy.copy(self)
        images._masks = masks
        return images

    def _replace_broken(self, broken: dict[int, str]) -> None:
        """Reports the broken images of those in memory, and delivers the next good one for each."""
        self.report_broken(broken)
        if broken:
            is_good = torch.ones(len(self), dtype=torch.bool)
            is_good[list(broken)] = False
            good = is_good.nonzero().squeeze(1)
            self._delivered_places = good[torch.searchsorted(good, torch.arange(len(self))) % len(good)]

    def _places_delivered(self, places: Sequence[int] | Tensor) -> Tensor:
        places = torch.as_tensor(places)
        return places if self._delivered_places is None else self._delivered_places[places]

    def copy_to(self, device: torch.device) -> Images:
        """Copies images that are in memory to an accelerator too, if they take at most a quarter of its free memory.

        Batches are then gathered on the device, and only their places are copied to it.
        """
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        if self.in_memory and self.nbytes <= DEVICE_SHARE * free:
            self._on_device = self._data.to(device)
        return self

    @property
    def on_device(self) -> bool:
        """Whether batches are gathered on an accelerator; see ``copy_to``."""
        return self._on_device is not None

    def sample(self, n: int) -> Tensor:
        """Up to n images, evenly spaced over the data set; the same ones at every call.

        Shape:
            -> (min(n, N), C, H, W).
        """
        with preserve_random_state(seed=0):
            return self.batch(evenly_spaced(n, len(self))).images

    def report_broken(self, broken: Mapping[int, str]) -> None:
        """Adds broken images, given as place -> reason, to ``skipped``.

        Raises:
            ValueError: listing them, if they are too many, or if ``on_bad_image`` is "raise".
        """
        if not broken:
            return
        self._broken.update(broken)
        count = f"{len(self._broken)} of {len(self)} images cannot be read"
        if self.on_bad_image == "raise":
            listed = format_broken(self._named(self._broken))
            raise ValueError(f'{count} and on_bad_image="raise"; remove or repair them: {listed}')
        if len(self._broken) > BROKEN_SHARE * len(self):
            share, listed = f"more than {BROKEN_SHARE:.0%}", format_broken(self._named(self._broken))
            raise ValueError(f"{count}, {share}; remove or repair them: {listed}")

    def describe(self) -> str:
        """One line: number, channels, type and sizes of the images, and where they are kept during training."""
        (h, w), (h2, w2) = self._sizes
        sizes = f"{h} x {w}" if (h, w) == (h2, w2) else f"{h} x {w} to {h2} x {w2}"
        stored = "" if self._sizes == (self.shape[1:],) * 2 else f" stored as {self.shape[1]} x {self.shape[2]}"
        norm = None if self.reading is None else self.reading.norm
        divided = "" if norm is None else f" divided by {norm:g}"
        if self.in_memory:
            where = f"{format_bytes(self.nbytes)} in memory"
            where += (
                f" and on {self._on_device.device} (limit {DEVICE_SHARE:.0%} of its free memory)"
                if self.on_device
                else ""
            )
        elif not self.source.repeatable:
            where = "read while training (items differ from one read to the next)"
        elif len(self) > MANY:
            where = "decoded while training"
        elif self.nbytes > self.memory_limit:
            where = f"decoded while training ({format_bytes(self.nbytes)} > limit {format_bytes(self.memory_limit)})"
        else:
            where = f"not in memory yet ({format_bytes(self.nbytes)})"
        left_out = self.source.left_out
        left_out = f"; {len(left_out)} left out: {format_broken(left_out, 3)}" if left_out else ""
        return (
            f"{len(self)} images found, {len(self) - len(self._broken)} used, {len(self._broken)} skipped; "
            f"{self.shape[0]} channel{'s' * (self.shape[0] > 1)}, {str(self.dtype).removeprefix('torch.')}; "
            f"{sizes} pixels{stored}{divided}; {where}{left_out}"
        )

    def _read(self, place: int) -> Sample | str:
        """The image at a place in the shape and type of the data set, with target and mask; or why it cannot be read."""
        known = self._broken.get(place)
        if known is not None and not isinstance(known, PassingReason):
            return known
        try:
            sample = read_with_retries(lambda: self.source.read(place, self.shape[1:]), again=place not in self._failed)
        except Exception as error:
            reason = self.source.reason(error)
            if isinstance(reason, PassingReason):
                self._failed.add(place)
            return reason
        self._failed.discard(place)
        try:
            return self._conform(*sample)
        except Exception as error:
            return describe_error(error) if self.source.repeatable else PassingReason(describe_error(error))

    def _conform(self, image: Tensor, target: Any, mask: Any) -> Sample:
        """An image that was read in the shape and type of the data set; raises a ValueError if it does not fit."""
        if not self._resized and image.shape[1:] != self.shape[1:]:
            raise ValueError(
                f"{image.shape[1]} x {image.shape[2]} pixels, the others "
                f"have {self.shape[1]} x {self.shape[2]}; pass image_size="
            )
        if isinstance(mask, Tensor) and mask.shape[-2:] == image.shape[1:] != self.shape[1:]:
            mask = resize_mask_to_cover(mask, self.shape[1:])
        image = image if self.reading is None else self.reading.select(image)
        image = conform_image(image, self.shape[0], self._stored_dtype, self.shape[1:])
        require_finite(image)
        return Sample(image if self.reading is None else self.reading.scale(image), target, mask)

    def _read_or_replace(self, place: int) -> tuple[Item, dict[int, str]]:
        """The image at a place, or the next one that can be read; and the broken images before it."""
        broken = {}
        while isinstance(sample := self._read(place), str):  # ends: report_broken raises long before all are broken
            broken[place] = sample
            self.report_broken(broken)
            place = (place + 1) % len(self)
        target = sample.target if self.targets is None else _number(self.targets[place])
        return Item(sample.image, place, target, sample.mask), broken


class ImageSpec(Images):
    """A data set of which only the shape is known, for a supervisor that was created without images.

    Args:
        shape: (C, H, W) of the images.
        count: number of images.
    """

    fingerprint = ""
    reading = None
    skipped: dict[str, str] = {}

    def __init__(self, shape: tuple[int, int, int] = (3, 225, 225), count: int = 0) -> None:
        self.shape, self.count = shape, count
        self.dtype = torch.uint8
        self.paths = self.targets = self.classes = self._data = None
        self.names: list[str] = []
        self._broken, self._pass = {}, None

    def __len__(self) -> int:
        return self.count

    def items(self, places: Sequence[int] | Tensor) -> tuple[list[Item], dict[int, str]]:
        """Raises a ValueError, since there are no images."""
        raise ValueError(
            f"there is no data set, only the shape {self.shape} of its images; pass a data set to read from."
        )

    def load(self) -> ImageSpec:
        """Does nothing."""
        return self

    def describe(self) -> str:
        """One line with the shape."""
        return f"no data set; images would be {' x '.join(map(str, self.shape))}"


def _gather(values: Tensor | list[Any] | None, index: Tensor) -> Any:
    """The values at the given places in the form that a batch holds them."""
    if isinstance(values, Tensor):
        return values[index]
    return None if values is None else stack_targets([values[place] for place in index.tolist()])


def _stack_or_list(values: list[Any]) -> Tensor | list[Any] | None:
    stacked = stack_targets(values)
    return stacked if stacked is None or isinstance(stacked, Tensor) else values


def _number(value: Any) -> Any:
    """A tensor of one value as a Python number, anything else unchanged."""
    return value.item() if isinstance(value, Tensor) and value.ndim == 0 else value
