"""The order of the images, and batches of them, which are the same from memory and from disk."""

from __future__ import annotations

import math
import multiprocessing
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
from superself.training.interrupt import leave_signals_to_parent


class EpochSampler:
    """Batches of positions in the data set, determined only by seed, epoch, ``places`` and weights.

    Each image comes once per epoch, over all processes together. The last batch is filled up with the first images of
    the same epoch, so that every batch is full. With weights, images are drawn with replacement instead.

    Args:
        n: number of images in the data set.
        batch_size: places in every batch, over all processes together.
        shuffle: a new order each epoch; otherwise the places come in their own order.
        seed: the orders are drawn from it.
        places: the images to train on, (M,) int64; None for all n.
        rank: number of this process, which gets its share of every batch.
        world_size: number of processes.
    Shape:
        yields (batch_size / world_size,) int64 on the CPU.
    Raises:
        ValueError: if a batch is empty, larger than the data set, or not a multiple of ``world_size``.
    """

    skips_batches = True  # ``set_epoch`` can start within an epoch

    def __init__(
        self,
        n: int,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        places: Tensor | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} gives empty batches; pass batch_size >= 1 to supervise().")
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank={rank} is not one of {world_size} processes; pass a rank from 0 to {world_size - 1}."
            )
        if batch_size % world_size:
            raise ValueError(
                f"batch_size={batch_size} cannot be divided equally among {world_size} processes; "
                f"pass a multiple of {world_size} to supervise()."
            )
        self.n, self.batch_size, self.shuffle, self.seed = n, batch_size, shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.weights: Tensor | None = None
        self.set_places(places)
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Sets the epoch, and how many of its first batches to skip (to resume within it)."""
        self.epoch, self.start = epoch, start

    def set_places(self, places: Tensor | None) -> None:
        """Sets the images to train on, (M,) int64 or None for all, and with them the number of batches per epoch."""
        count = self.n if places is None else len(places)
        if self.batch_size > count:
            found = f"{count} images" if places is None else f"{count} of {self.n} images are trained on"
            raise ValueError(
                f"batch_size={self.batch_size} is larger than the data set ({found}), so there is no full batch; "
                f"pass batch_size <= {count} to supervise()."
            )
        if places is not None and not (places.min() >= 0 and places.max() < self.n):
            raise ValueError(
                f"places go from {places.min()} to {places.max()} in a data set of {self.n} images; "
                f"pass places from 0 to {self.n - 1}."
            )
        self.places = None if places is None else places.cpu().long()

    def set_weights(self, weights: Tensor | None) -> None:
        """Draws images with replacement, with probabilities proportional to their weights; None takes each once.

        Args:
            weights: (N,), one per image of the data set, at least 0.
        """
        if weights is not None:
            weights = weights.detach().cpu().double()
            if weights.shape != (self.n,):
                raise ValueError(
                    f"weights of shape {tuple(weights.shape)} for {self.n} images; pass one weight per image, ({self.n},)."
                )
            if not (weights.isfinite() & (weights >= 0)).all():
                raise ValueError(
                    f"weights must be finite and at least 0, got {weights.min():.4g} to {weights.max():.4g}; "
                    "pass 0 for images that are not drawn."
                )
            if not weights.any():
                raise ValueError("all weights are 0, so no image can be drawn; pass at least one larger than 0.")
        self.weights = weights

    def state_dict(self) -> dict[str, Tensor | None]:
        """The places and weights, for a checkpoint."""
        return {"places": self.places, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Tensor | None]) -> None:
        """Restores the places and weights of ``state_dict``."""
        self.set_places(state["places"])
        self.set_weights(state["weights"])

    def __len__(self) -> int:
        return math.ceil((self.n if self.places is None else len(self.places)) / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        share = self.batch_size // self.world_size
        for batch in self._order().split(self.batch_size)[self.start :]:
            yield batch[self.rank * share : (self.rank + 1) * share]

    def _order(self) -> Tensor:
        """The places of the whole epoch, (len(self) * batch_size,)."""
        order = torch.arange(self.n) if self.places is None else self.places
        generator = torch.Generator().manual_seed(_mix(self.seed, self.epoch))
        count = len(self) * self.batch_size
        if self.weights is not None:
            order = order[self.weights[order] > 0]
            if len(order) == 0:
                raise ValueError(
                    "all places have weight 0, so no image can be drawn; change the places or the weights."
                )
            edges = self.weights[order].cumsum(0)  # torch.multinomial has a limit of 2**24 places
            drawn = torch.rand(count, generator=generator, dtype=torch.float64) * edges[-1]
            return order[torch.searchsorted(edges, drawn, right=True).clamp(max=len(order) - 1)]
        if self.shuffle:
            order = order[torch.randperm(len(order), generator=generator)]
        return torch.cat([order, order[: count - len(order)]])


class SequentialBatches:
    """Batches of all places in order, for evaluation; the last one may be smaller.

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
    """Yields a ``Batch`` for each batch of places: by indexing if the images are in memory, else from worker processes.

    Args:
        images: the data set.
        batches: the places of each batch, as ``EpochSampler`` or ``SequentialBatches`` yields them.
        num_workers: number of decoding processes. 0 means one per core for files, and none for a torch Dataset.
            Images in memory need none, unless ``collate_fn`` is given.
        collate_fn: makes a batch of a list of ``Item``, in the workers. What it returns is converted by
            ``Batch.from_loader``. If it returns as many images as it received, an index or a target that it omits is
            taken from the items, in their order.
        pin_memory: whether batches are in page-locked memory if there is a GPU, which makes copies to it faster.
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
            worker_init_fn=leave_signals_to_parent,
            generator=torch.Generator(),  # a separate one: loading leaves the random state of the run unchanged
            # Workers that draw random numbers are restarted each epoch, since they receive the epoch when they start.
            persistent_workers=num_workers > 0 and plain and images.paths is not None,
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def peek(self) -> Batch:
        """A batch like those to come, without moving on; made in this process."""
        return self._fetch.__getitems__(next(iter(self.sampler)))

    def __iter__(self) -> Iterator[Batch]:
        self._fetch.entropy = (getattr(self.sampler, "seed", 0), getattr(self.sampler, "epoch", 0))
        batches = map(self._fetch.__getitems__, self.sampler) if self._loader is None else self._batches_of_workers()
        for batch in batches:
            self.images.report_broken(batch.broken)
            yield batch.pin_memory() if self._pin and self._loader is None else batch

    def _batches_of_workers(self) -> Iterator[Batch]:
        try:
            yield from self._loader
        except RuntimeError as error:
            in_worker = "bootstrapping phase" in str(error)
            in_parent = "exited unexpectedly" in str(error) and multiprocessing.get_start_method() != "fork"
            if not (in_worker or in_parent):
                raise
            raise RuntimeError(
                "worker processes import the script again where they are spawned, and this script starts training on "
                'import; put the code that trains below `if __name__ == "__main__":`. If it is there already, a worker '
                "was stopped from outside, for example for lack of memory."
            ) from error


class _Fetch(Dataset):
    """Makes the Batch for given places, in this process or in a worker."""

    def __init__(self, images: Images, collate_fn: Callable[[list], Any] | None) -> None:
        self.images, self.collate_fn = images, collate_fn
        self.entropy = (0, 0)

    def __getitems__(self, places: Tensor) -> Batch:
        if get_worker_info() is not None:
            # Random transforms of users depend on seed, epoch and batch, not on the number of workers or on resuming.
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
