"""The order of the images and the batches made of them, the same from memory and from disk."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from superself.basics.random import seed_everything
from superself.data.batch import Batch, stack_targets
from superself.data.images import Images
from superself.data.sources import available_cores


class EpochSampler:
    """Batches of places whose order is a function of the seed and the epoch alone.

    The last batch is filled up with the first images of the same epoch: every image is seen, every batch is full.

    Args:
        n: number of images.
        batch_size: places in every batch.
        shuffle: a new order each epoch; without it the places come as they are.
        seed: what the orders are drawn from.
        places: of those images that are trained on, (M,) int64 on the CPU; None stands for all n.
    Shape:
        yields (batch_size,) int64.
    Raises:
        ValueError: if a batch is empty or larger than the data set.
    """

    def __init__(
        self, n: int, batch_size: int, shuffle: bool = True, seed: int = 0, places: Tensor | None = None
    ) -> None:
        places = torch.arange(n) if places is None else places
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} gives empty batches; pass batch_size >= 1 to supervise().")
        if batch_size > len(places):
            found = f"{n} images" if len(places) == n else f"{len(places)} of {n} images are trained on"
            raise ValueError(
                f"batch_size={batch_size} is larger than the data set ({found}), so there is no full batch; "
                f"pass batch_size <= {len(places)} to supervise()."
            )
        self.places, self.n = places, len(places)
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and how many of its first batches to leave out (to resume within it)."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return math.ceil(self.n / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        order = self.places
        if self.shuffle:
            generator = torch.Generator().manual_seed(_mix(self.seed, self.epoch))
            order = order[torch.randperm(self.n, generator=generator)]
        order = torch.cat([order, order[: -self.n % self.batch_size]])
        yield from order.split(self.batch_size)[self.start :]


class SequentialBatches:
    """Batches of all places in order, for evaluation; the last one may be short.

    Shape:
        yields (batch_size,) int64, or fewer in the last batch.
    """

    def __init__(self, n: int, batch_size: int) -> None:
        self.n, self.batch_size = n, batch_size

    def __len__(self) -> int:
        return math.ceil(self.n / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.arange(self.n).split(self.batch_size)


class BatchLoader:
    """Batches of images as CPU tensors: by indexing when they are in memory, else decoded in worker processes.

    Args:
        images: what to take them from.
        batches: the places of each batch, as ``EpochSampler`` or ``SequentialBatches`` gives them.
        num_workers: processes that decode. 0 means one a core for files, and none for a user's own data set.
            Images in memory need none, unless ``collate_fn`` is given.
        collate_fn: makes a batch of a list of ``Item``, in the workers. What it returns becomes a ``Batch`` by
            ``Batch.from_loader``; index and target that it leaves out are those of the items, in their order.
        pin_memory: hand out page-locked memory where there is a GPU, to which a copy from it is faster.
    Shape:
        yields ``Batch``.
    """

    def __init__(
        self,
        images: Images,
        batches: Iterable[Tensor],
        num_workers: int = 0,
        collate_fn: Callable[[list], Any] | None = None,
        pin_memory: bool = False,
    ) -> None:
        collate_fn = None if collate_fn is default_collate else collate_fn  # which cannot stack a missing target
        self.images, self.sampler = images, batches
        self._fetch = _Fetch(images, collate_fn)
        self._pin = pin_memory and torch.cuda.is_available()
        plain = collate_fn is None
        if plain and images.in_memory:
            self._loader = None
            return
        if num_workers == 0 and images.paths is not None and not images.in_memory:
            num_workers = available_cores()
        self._loader = DataLoader(
            self._fetch,
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=_identity,
            pin_memory=self._pin,
            generator=torch.Generator(),  # of its own, so that loading never moves the run's random state
            # Workers start anew each epoch where they draw random numbers, because they learn the epoch at their start.
            persistent_workers=num_workers > 0 and plain and images.paths is not None,
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        self._fetch.entropy = (getattr(self.sampler, "seed", 0), getattr(self.sampler, "epoch", 0))
        batches = map(self._fetch.__getitems__, self.sampler) if self._loader is None else self._loader
        for batch in batches:
            self.images.report_broken(batch.broken)
            yield batch.pin_memory() if self._pin and self._loader is None else batch


class _Fetch(Dataset):
    """Places -> Batch: the one way to make a batch, in this process or in a worker."""

    def __init__(self, images: Images, collate_fn: Callable[[list], Any] | None) -> None:
        self.images, self.collate_fn = images, collate_fn
        self.entropy = (0, 0)

    def __getitems__(self, places: Tensor) -> Batch:
        if get_worker_info() is not None:
            # A user's random transforms depend on the batch alone: neither on the number of workers nor on a resume.
            seed_everything(_mix(*self.entropy, int(places[0])))
        if self.collate_fn is None:
            return self.images.batch(places)
        items, broken = self.images.items(places)
        batch = Batch.from_loader(self.collate_fn(items))
        batch.broken = {**batch.broken, **broken}
        if len(batch) == len(items):
            if batch.index is None:
                batch.index = torch.tensor([item.index for item in items], dtype=torch.int64)
            if batch.target is None:
                batch.target = stack_targets([item.target for item in items])
        return batch


def _identity(batch: Any) -> Any:
    return batch


def _mix(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
