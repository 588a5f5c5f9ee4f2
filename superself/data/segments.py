"""Segment maps of images: found by an algorithm, as a grid, or as the data set brings them."""

from __future__ import annotations

import hashlib
import sys
import time
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from superself.basics.distributed import from_rank_0, rank, total, world_size
from superself.data.batch import Batch, Item, stack_targets
from superself.data.images import Images
from superself.data.loader import BatchLoader
from superself.training.files import replacing

LARGEST_ID = 255  # maps are uint8
PART = 16  # images whose segments a worker finds at a time
WORTH_STORING = 10.0  # seconds; maps that take longer are kept in a file
AUTOMATIC_SCALE = 0.3  # times the number of pixels to the power of 3/4: 54 for 32 x 32, 1006 for 224 x 224


@dataclass(frozen=True)
class Segmenter:
    """Makes the segment map of an image; as a ``collate_fn``, batches with the maps as masks.

    Segments are numbered from 1; 0 belongs to none. Of more than 255 segments, the largest 255 are kept. A map is determined by
    its image, also where ``scale`` has bounds.

    Args:
        method: "felzenszwalb", "grid", or "dataset" for the masks of the data set, whose label 0 belongs to none.
        scale: of Felzenszwalb's method: the larger, the fewer segments; bounds to draw it from for each image; None for 0.3
            times the number of pixels to the power of 3/4, with which photographs have 3 to 10 segments.
        min_size: pixels of its smallest segments; None for ``scale``.
        grid: cells along each side.
    Shape:
        image (C, H, W) -> (H, W) uint8.

    Source: Felzenszwalb & Huttenlocher, Efficient Graph-Based Image Segmentation, doi:10.1023/B:VISI.0000022288.19776.77, as
        implemented in scikit-image.
    """

    method: str = "felzenszwalb"
    scale: float | tuple[float, float] | None = None
    min_size: int | None = None
    grid: int = 4

    def __call__(self, items: Sequence[Item]) -> Batch:
        """A batch of items with the maps (B, H, W) as masks."""
        maps = torch.stack([self.segment(item.image, item.mask) for item in items])
        index = torch.tensor([item.index for item in items], dtype=torch.int64)
        images = torch.stack([item.image for item in items])
        return Batch(images, index, stack_targets([item.target for item in items]), maps)

    def segment(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """The map of an image, which may have a mask of its own."""
        if self.method == "grid":
            return self.grid_map(image.shape[1], image.shape[2])
        if self.method == "felzenszwalb":
            return number_by_size(1 + torch.from_numpy(self._felzenszwalb(image)))
        if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.numel() != image[0].numel():
            found = "no mask" if mask is None else f"a mask of shape {tuple(np.shape(mask))}"
            raise ValueError(
                f'segments="dataset" needs a map of integers with the size of the image, {tuple(image.shape[1:])}, and an image '
                f'has {found}; return {{"image": ..., "mask": ...}} from the data set, or pass segments="felzenszwalb".'
            )
        mask = mask.reshape(image.shape[1:])
        return mask.byte() if mask.dtype in (torch.bool, torch.uint8) else number_by_size(mask)

    def grid_map(self, height: int, width: int) -> Tensor:
        """The map of a grid (H, W): cells are numbered row by row."""
        row, column = ((torch.arange(side) * self.grid).div(side, rounding_mode="floor") for side in (height, width))
        return (1 + self.grid * row[:, None] + column).byte()

    def _felzenszwalb(self, image: Tensor) -> np.ndarray:
        from skimage.segmentation import felzenszwalb  # takes a while to import

        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        scale = self.scale
        if scale is None:
            scale = AUTOMATIC_SCALE * pixels[..., 0].size ** 0.75
        elif not isinstance(scale, (int, float)):
            scale = np.random.default_rng(zlib.crc32(pixels)).uniform(*scale)
        min_size = max(1, int(scale if self.min_size is None else self.min_size))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are more than three channels
            return felzenszwalb(pixels, scale=scale, min_size=min_size, channel_axis=-1)


def number_by_size(labels: Tensor) -> Tensor:
    """A map of any labels with the numbers 1, 2, ... from the largest segment on; 0 for labels below 1, and beyond 255."""
    values, place, sizes = labels.unique(return_inverse=True, return_counts=True)
    sizes[values <= 0] = 0
    numbers = torch.zeros(len(values), dtype=torch.uint8)
    kept = sizes.argsort(descending=True, stable=True)[: min(LARGEST_ID, int((values > 0).sum()))]
    numbers[kept] = torch.arange(1, len(kept) + 1, dtype=torch.uint8)
    return numbers[place].view(labels.shape)


def segment_data_set(
    images: Images,
    segmenter: Segmenter,
    num_workers: int = 0,
    folder: Path | None = None,
    device: str = "cpu",
    bar: bool = False,
) -> Tensor:
    """The segment maps (N, H, W) uint8 of images that are in memory, each found once; several processes share the work.

    Args:
        images: that are in memory.
        segmenter: makes the maps.
        num_workers: processes that find them; 0 for this one.
        folder: where maps that took longer than ``WORTH_STORING`` are kept, and looked for: they are found by a hash of the
            pixels and of the segmenter. None keeps none.
        device: on which processes exchange tensors.
        bar: whether to show a progress bar.
    """
    path = (
        None if folder is None or segmenter.method == "dataset" else folder / f"segments-{_key(images, segmenter)}.npz"
    )
    maps = _read(path, (len(images), *images.shape[1:])) if rank() == 0 else None
    is_stored = from_rank_0(torch.tensor([maps is not None], device=device)).item()
    if is_stored:
        maps = torch.zeros(len(images), *images.shape[1:], dtype=torch.uint8) if maps is None else maps
        return _summed(maps, device)
    began = time.monotonic()
    maps = _summed(_find(images, segmenter, num_workers, bar and rank() == 0), device)
    if path is not None and rank() == 0 and time.monotonic() - began > WORTH_STORING:
        try:
            with replacing(path) as file:
                np.savez_compressed(file, maps=maps.numpy())
        except OSError as error:
            warnings.warn(
                f"segments could not be stored in {path} ({error}); the next run finds them again.", stacklevel=2
            )
    return maps


def _find(images: Images, segmenter: Segmenter, num_workers: int, bar: bool) -> Tensor:
    """The maps of this process's share of the images; those of others are 0."""
    from tqdm import tqdm

    maps = torch.zeros(len(images), *images.shape[1:], dtype=torch.uint8)
    parts = torch.arange(len(images)).split(PART)[rank() :: world_size()]
    loader = BatchLoader(images, parts, num_workers, _MapsOnly(segmenter))
    for places, batch in zip(
        parts, tqdm(loader, "segments", leave=False, file=sys.stderr, disable=not bar), strict=True
    ):
        own = batch.index == places  # elsewhere another image stands in
        maps[places[own]] = batch.images[own]
    return maps


@dataclass(frozen=True)
class _MapsOnly:
    """A ``collate_fn`` that sends only the maps back from the worker."""

    segmenter: Segmenter

    def __call__(self, items: Sequence[Item]) -> Batch:
        batch = self.segmenter(items)
        return Batch(batch.mask, batch.index)


def _summed(maps: Tensor, device: str) -> Tensor:
    """The sum of all processes' maps, of which at most one is not 0 for each image."""
    if world_size() > 1:
        for part in maps.split(max(1, 2**26 // maps[0].numel())):
            part.copy_(total(part.to(device)))
    return maps


def _key(images: Images, segmenter: Segmenter) -> str:
    found = hashlib.blake2b(f"{images.fingerprint} {images.shape} {segmenter}".encode(), digest_size=8)
    for places in torch.arange(len(images)).split(1024):
        found.update(images.batch(places).images.cpu().numpy())
    return found.hexdigest()


def _read(path: Path | None, shape: tuple[int, ...]) -> Tensor | None:
    """Stored maps, if they are there, complete and of this shape."""
    if path is None or not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            maps = torch.from_numpy(stored["maps"])
    except Exception:  # whatever a damaged or foreign file raises: the maps are found again
        return None
    return maps if maps.shape == shape and maps.dtype == torch.uint8 else None
