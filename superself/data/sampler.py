"""The order of the images: batches of their places, the same in every process and after resuming."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from superself.basics.validate import require_bool, require_count

LISTED = 2**26  # images up to which the order of an epoch is a list; that of more is computed batch by batch
ROUNDS = 8  # of the Feistel network that computes it


class EpochSampler:
    """Batches of positions in the data set, determined only by seed, epoch, ``places`` and weights.

    Each image comes once per epoch, over all processes together. The last batch is filled up with the first images of
    the same epoch, so that every batch is full. With weights, images are drawn with replacement instead. The order of more
    than 2**26 images is a pseudo-random permutation that is computed batch by batch and takes no memory.

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
        TypeError: if an argument is of another type.
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
        require_count("n", n, "is the number of images", minimum=0)
        require_count("batch_size", batch_size, "is the number of images per step; 0 gives empty batches")
        require_count("seed", seed, "makes the order repeatable", minimum=0)
        require_count("world_size", world_size, "is the number of processes")
        require_count("rank", rank, "is the number of this process", minimum=0)
        require_bool("shuffle", shuffle, "draws a new order each epoch")
        if rank >= world_size:
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
        if places is not None and not (isinstance(places, Tensor) and places.ndim == 1):
            raise TypeError(f"places={places!r} must be a tensor (M,) of positions in the data set, or None for all.")
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
            weights = torch.as_tensor(weights).detach().cpu().double()
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
        return math.ceil(self._count / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        share = self.batch_size // self.world_size
        for batch in self._batches():
            yield batch[self.rank * share : (self.rank + 1) * share]

    @property
    def _count(self) -> int:
        return self.n if self.places is None else len(self.places)

    def _batches(self) -> Iterator[Tensor]:
        """The batches of all processes together, from ``start`` on."""
        if self._count <= LISTED or self.weights is not None:
            yield from self._order().split(self.batch_size)[self.start :]
            return
        key = mix_entropy(self.seed, self.epoch)
        for number in range(self.start, len(self)):
            first = number * self.batch_size
            positions = torch.arange(first, first + self.batch_size) % self._count  # the last batch starts again
            positions = permuted_positions(positions, self._count, key) if self.shuffle else positions
            yield positions if self.places is None else self.places[positions]

    def _order(self) -> Tensor:
        """The places of the whole epoch, (len(self) * batch_size,)."""
        order = torch.arange(self.n) if self.places is None else self.places
        generator = torch.Generator().manual_seed(mix_entropy(self.seed, self.epoch))
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
        require_count("n", n, "is the number of images", minimum=0)
        require_count("batch_size", batch_size, "is the number of images in a batch")
        self.n, self.batch_size = n, batch_size

    def __len__(self) -> int:
        return math.ceil(self.n / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        for first in range(0, self.n, self.batch_size):
            yield torch.arange(first, min(first + self.batch_size, self.n))


def permuted_positions(positions: Tensor, n: int, key: int) -> Tensor:
    """The places at ``positions`` of a pseudo-random permutation of 0, ..., n - 1, without a list of it.

    A Feistel network permutes the numbers of 2k bits; a number that is not below n goes through it again until it is.

    Source: Black & Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002: cycle walking.
    Deviations: a fast hash that is not cryptographic is the round function.
    Shape:
        positions (B,) -> (B,) int64.
    """
    bits = np.uint64(max(1, -(-(n - 1).bit_length() // 2)))
    mask = np.uint64((1 << int(bits)) - 1)
    keys = np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64)
    found = positions.numpy().astype(np.uint64)
    outside = np.ones(len(found), bool)
    while outside.any():
        left, right = found[outside] >> bits, found[outside] & mask
        for each in keys:
            left, right = right, left ^ (_hash(right ^ each) & mask)
        found[outside] = left << bits | right
        outside[outside] = found[outside] >= n
    return torch.from_numpy(found.astype(np.int64))


def mix_entropy(*entropy: int) -> int:
    """A seed of 64 bits made of several numbers, such as seed and epoch."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def _hash(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64, modulo 2**64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
