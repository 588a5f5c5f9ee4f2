"""Batch: what a loader yields and ``_forward`` receives; Item: what a collate_fn receives a list of."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

IMAGE_KEYS = ("images", "image", "img", "pixel_values")
TARGET_KEYS = ("target", "targets", "label", "labels")
INDEX_KEYS = ("index", "indices")
MASK_KEYS = ("mask", "masks")


class Item(NamedTuple):
    """One image (C, H, W), its position in the data set, and its target and mask, or None where there are none."""

    image: Tensor
    index: int
    target: Any = None
    mask: Tensor | None = None


@dataclass(slots=True)
class Batch:
    """A batch with named fields; unpacking it gives (images, target).

    Args:
        images: (B, C, H, W) in the type they are stored as; the first view where a collate_fn made several.
        index: (B,) int64, the positions of the images in the data set; None if unknown.
        target: whatever the data set returned next to each image (class indices (B,), vectors, images, multi-hot labels
            with NaN for unknown): a tensor where it can be stacked, else a list with one entry per image.
        mask: (B, ...), one per image.
        views: ready-made views, each (B, C, h, w), where a collate_fn made them.
        broken: the images that could not be read while the batch was made, as position in the data set -> reason.
    """

    images: Tensor
    index: Tensor | None = None
    target: Any = None
    mask: Tensor | None = None
    views: list[Tensor] | None = None
    broken: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Any]:
        if self.target is None:
            raise ValueError(
                "this data set has no targets, so a batch cannot be unpacked into images and target; use data.images, "
                "or pass a data set whose items are (image, target)."
            )
        yield self.images
        yield self.target

    def to(self, device: torch.device | str) -> Batch:
        """The batch with all tensors on a device; copies from pinned memory do not wait."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch with all tensors in page-locked memory, from which copies to a GPU are faster."""
        return self._map(lambda tensor: tensor if tensor.device.type != "cpu" else tensor.pin_memory())

    def split(self, parts: int) -> list[Batch]:
        """Consecutive parts of the batch, of equal size where that is possible, and at most one for each image.

        Tensors with a row for each image are split, also inside lists and dictionaries; so are lists with an entry for each.
        """
        parts = min(parts, len(self))
        bounds = [round(len(self) * part / parts) for part in range(parts + 1)]
        return [self._rows(slice(*pair)) for pair in itertools.pairwise(bounds)]

    @classmethod
    def from_loader(cls, value: Any) -> Batch:
        """A Batch from what a loader or a collate_fn returned.

        Args:
            value: a Batch (returned unchanged); images (B, C, H, W); (images, target) as a tuple or list, of which
                further elements are ignored; or a dict with the keys image, target or label, index and mask. A list of
                several tensors in the place of the images holds views.
        Raises:
            TypeError: if it is none of these.
        """
        if isinstance(value, Batch):
            return value
        if isinstance(value, tuple) and hasattr(value, "_asdict"):
            value = value._asdict()
        if isinstance(value, Tensor):
            return cls(value)
        if isinstance(value, Mapping):
            images = _first(value, ("views", *IMAGE_KEYS))
            index, target, mask = (_first(value, keys) for keys in (INDEX_KEYS, TARGET_KEYS, MASK_KEYS))
        elif isinstance(value, (tuple, list)) and value:
            images, target, index, mask = value[0], value[1] if len(value) > 1 else None, None, None
            if len(value) > 2 and all(isinstance(part, Tensor) and part.ndim == 4 for part in value):
                raise TypeError(
                    f"a list of {len(value)} image tensors may be views or images and targets; return "
                    "([view, view, ...], target) for views, or a superself.data.Batch."
                )
        else:
            images = None
        several = isinstance(images, (tuple, list)) and len(images) > 0
        if not (isinstance(images, Tensor) or (several and all(isinstance(view, Tensor) for view in images))):
            raise TypeError(
                f"a batch must be images (B, C, H, W), (images, target), a dict with the key 'image', or a "
                f"superself.data.Batch, got {_described(value)}; change what the loader or the collate_fn returns."
            )
        index = None if index is None else torch.as_tensor(index, dtype=torch.int64)
        if isinstance(target, (list, tuple)) and not any(isinstance(part, Tensor) for part in target):
            target = stack_targets(target)  # tensors in a list are left as default_collate or the user arranged them
        return cls(images[0] if several else images, index, target, mask, list(images) if several else None)

    def _rows(self, rows: slice) -> Batch:
        count, first = len(self), rows.start == 0

        def part(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[rows] if value.ndim and len(value) == count else value
            if isinstance(value, Mapping):
                return {key: part(entry) for key, entry in value.items()}
            if isinstance(value, (list, tuple)):
                stacked = value and all(isinstance(v, Tensor) and v.ndim and len(v) == count for v in value)
                one_each = len(value) == count and not stacked
                return list(value[rows]) if one_each else [part(entry) for entry in value]
            return value

        values = {f.name: part(getattr(self, f.name)) for f in fields(self) if f.name != "broken"}
        return replace(self, **values, broken=self.broken if first else {})

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return replace(self, **{f.name: _map_tensors(function, getattr(self, f.name)) for f in fields(self)})


def stack_targets(targets: Sequence[Any]) -> Any:
    """One target per image as a tensor (B, ...) where ``default_collate`` can stack them, else as a list; or None.

    Class indices of any integer type become int64, as the cross-entropy needs.
    """
    targets = list(targets)
    if all(target is None for target in targets):
        return None
    try:
        stacked = default_collate(targets)
    except (TypeError, RuntimeError, ValueError, KeyError):  # of different shapes or kinds, or some are None
        return targets
    return stacked.long() if are_classes(stacked) else stacked


def are_classes(target: Any) -> bool:
    """Whether a target is one whole number per image."""
    integer = isinstance(target, Tensor) and not (target.is_floating_point() or target.is_complex())
    return integer and target.ndim == 1 and target.dtype != torch.bool


def _first(values: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((values[key] for key in keys if key in values), None)


def _map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map_tensors(function, part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_tensors(function, part) for part in value]
    return value


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dict with the keys {list(value)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {[type(part).__name__ for part in value[:4]]}"
    return f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
