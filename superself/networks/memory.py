"""Embeddings of earlier batches for contrastive methods: a queue of recent ones, or one row for each image.

Both work in two steps, because a loss must not see what it has just computed: ``remember`` is called in ``_forward`` and
changes nothing that is stored, ``commit`` is called after the optimiser step and writes what was remembered last. ``commit``
is also the only place where several processes meet: it gathers the batches of all of them, so that each stores the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from superself.basics.distributed import from_rank_0, gather
from superself.basics.validate import require_count, require_fraction


class _Memory(nn.Module):
    """Rows of unit length, written by ``commit`` from what ``remember`` was given."""

    features: Tensor  # (rows, D)

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.register_buffer("features", normalize(torch.randn(rows, width), dim=1))
        self._pending: tuple[Tensor, Tensor | None] | None = None

    def remember(self, embeddings: Tensor, places: Tensor | None) -> None:
        """Keeps the embeddings of a batch for the next ``commit``, in place of those of an earlier call.

        Args:
            embeddings: (B, D), of any length; no gradient is kept.
            places: (B,) the positions of their images in the data set.

        Raises:
            TypeError: if ``places`` are not integers.
        """
        if places is not None and (places.is_floating_point() or places.ndim != 1):
            raise TypeError(
                f"places have type {places.dtype} and shape {tuple(places.shape)}; pass remember(embeddings (B, D), places (B,)) "
                "with integer places."
            )
        self._pending = embeddings.detach(), places

    @property
    def pending(self) -> tuple[Tensor, Tensor | None] | None:
        """The embeddings and places that the next ``commit`` writes."""
        return self._pending

    def remember_parts(self, parts: Sequence[tuple[Tensor, Tensor | None] | None]) -> None:
        """Keeps what was ``pending`` after each part of a batch, in this order, for the next ``commit``."""
        kept = [part for part in parts if part is not None]
        if kept:
            embeddings, places = zip(*kept, strict=True)
            self._pending = torch.cat(embeddings), None if places[0] is None else torch.cat(places)

    @torch.no_grad()
    def commit(self) -> None:
        """Writes the embeddings that were remembered since the last commit, if any."""
        if self._pending is not None:
            embeddings, places = self._pending
            self._pending = None
            self._write(gather(embeddings), None if places is None else gather(places))

    def _write(self, embeddings: Tensor, places: Tensor | None) -> None:
        raise NotImplementedError


class FeatureQueue(_Memory):
    """The last K embeddings, first in, first out.

    Before the queue is full, the remaining rows are random directions. Its buffers are part of the checkpoint.

    Source: He et al., MoCo, arXiv:1911.05722, Sec. 3.2.
    Deviations: the queue also stores which image each row shows, so that keys of the same image need not count as negatives.
    Args:
        size: K, rows of the queue.
        width: D of an embedding.
    Shape:
        ``features`` (K, D), each row of unit length.
    Raises:
        ValueError: if ``size`` is below 1.
    """

    dataset_state = ("places",)  # reset when the data set changes

    def __init__(self, size: int, width: int) -> None:
        require_count("size", size, "is the number of embeddings in the queue")
        super().__init__(size, width)
        self.register_buffer("places", torch.full((size,), -1))  # positions in the data set, -1 if unknown
        self.register_buffer("enqueued", torch.zeros((), dtype=torch.long))  # rows written so far

    @property
    def filled(self) -> Tensor:
        """The fraction of rows that hold embeddings: a scalar on the device, which can be passed to ``note``."""
        return (self.enqueued / len(self.features)).clamp(max=1)

    def remember(self, embeddings: Tensor, places: Tensor | None = None) -> None:
        """Keeps the embeddings (B, D) of the images at ``places`` (B,) for the next ``commit``.

        A second call before the commit replaces the first; without ``places`` it is unknown which images they show.
        """
        super().remember(embeddings, places)

    @torch.no_grad()
    def enqueue(self, embeddings: Tensor, places: Tensor | None = None) -> None:
        """Replaces the oldest rows immediately by embeddings (B, D) of unit length; if B > K, only the last K are kept."""
        size = len(self.features)
        kept = normalize(embeddings.detach().float(), dim=1)[-size:]
        rows = (self.enqueued + torch.arange(len(kept), device=self.features.device)) % size
        self.features.index_copy_(0, rows, kept)
        if places is None:
            self.places.index_fill_(0, rows, -1)
        else:
            self.places.index_copy_(0, rows, places[-size:])
        self.enqueued.add_(len(kept))

    def same_image(self, places: Tensor) -> Tensor:
        """Which rows show the images at ``places`` and are not negatives of theirs. Shape: (B,) -> (B, K) bool."""
        return places[:, None] == self.places

    def _write(self, embeddings: Tensor, places: Tensor | None) -> None:
        self.enqueue(embeddings, places)


class MemoryBank(_Memory):
    """One row for every image of the data set: a moving average of its embeddings over the epochs.

    ``commit`` updates the rows of a batch: v <- m v + (1 - m) f, scaled to unit length. Before an image has been seen, its
    row is a random direction. The buffers are part of the checkpoint.

    Source: Wu et al., Instance Discrimination, arXiv:1805.01978, Sec. 3; averages as in the authors' code and in Misra & van der
        Maaten, PIRL, arXiv:1912.01991, where the first paper replaces rows.
    Deviations: none.
    Args:
        count: N, images of the data set.
        width: D of an embedding.
        momentum: m, the fraction of the old row that is kept.
    Shape:
        ``features`` (N, D), each row of unit length.
    Raises:
        ValueError: if ``momentum`` is not in [0, 1).
    """

    dataset_state = ("features", "is_filled")  # reset when the data set changes

    def __init__(self, count: int, width: int, momentum: float = 0.5) -> None:
        require_fraction("momentum", momentum, "is the fraction of a bank's row that is kept", upper_open=True)
        super().__init__(max(1, count), width)
        self.momentum = momentum
        self.register_buffer("is_filled", torch.zeros((), dtype=torch.bool))  # whether ``fill`` has set the rows

    def extra_repr(self) -> str:
        """Sizes and momentum."""
        return f"{len(self.features)}, {self.features.shape[1]}, momentum={self.momentum}"

    @torch.no_grad()
    def fill(self, features: Tensor) -> None:
        """Replaces every row, for example by the features of an untrained network.

        Args:
            features: (N, D) in the order of the data set; scaled to unit length.

        Raises:
            ValueError: if the shape differs from that of the bank.
        """
        if features.shape != self.features.shape:
            raise ValueError(
                f"features {tuple(features.shape)} do not match the bank's shape {tuple(self.features.shape)}; "
                "pass one row for each image of the data set."
            )
        self.features.copy_(normalize(features.float(), dim=1))
        self.is_filled.fill_(True)

    @property
    def filled(self) -> bool:
        """Whether ``fill`` has set the rows, in this run or the one it continues; waits for an accelerator."""
        return bool(self.is_filled)

    def rows(self, places: Tensor) -> Tensor:
        """The rows of the images at ``places``. Shape: (B,) -> (B, D)."""
        return self.features[places]

    def negatives(self, places: Tensor, count: int | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows that serve as negatives for the images at ``places``, and which of them show the same image.

        Args:
            places: of the images of the batch.
            count: K rows are drawn for the whole batch, that of all processes, each with equal probability; None, or N or
                more, takes the whole bank.
            generator: random numbers on the CPU.
        Shape:
            places (B,) -> rows (K, D), same image (B, K) bool.
        """
        size = len(self.features)
        if count is None or count >= size:
            return self.features, places[:, None] == torch.arange(size, device=places.device)
        drawn = torch.randint(size, (count,), generator=generator).to(places.device, non_blocking=True)
        drawn = from_rank_0(drawn)  # one draw for the global batch
        return self.features[drawn], places[:, None] == drawn

    def candidates(self, count: int | None) -> int:
        """The number of rows an image's own row is found among when ``count`` negatives are drawn; None means all rows."""
        size = len(self.features)
        return size if count is None else min(count + 1, size)

    def _write(self, embeddings: Tensor, places: Tensor | None) -> None:
        new = normalize(embeddings.float(), dim=1)
        mixed = self.momentum * self.features[places] + (1 - self.momentum) * new
        self.features.index_copy_(0, places, normalize(mixed, dim=1))
