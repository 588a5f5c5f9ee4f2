"""What contrastive methods remember of other images: a queue of recent embeddings, or a row for every image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


class FeatureQueue(nn.Module):
    """The last K embeddings, first in, first out; its buffers travel with the checkpoint and the device.

    Source: He et al., MoCo, arXiv:1911.05722, Sec. 3.2.
    Deviations: it knows which image each row shows, where that is told; before it has been filled, the rows are random
        directions.
    Args:
        size: K, rows of the queue.
        width: D of an embedding.
    Shape:
        ``features`` (K, D), each row of length one.
    Raises:
        ValueError: if ``size`` is below 1.
    """

    dataset_state = ("places",)  # what other images begin anew

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"a queue of size={size} holds nothing; pass at least 1.")
        self.register_buffer("features", normalize(torch.randn(size, width), dim=1))
        self.register_buffer("places", torch.full((size,), -1))  # of the rows' images in the data set, where known
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))  # where the oldest row is

    @torch.no_grad()
    def enqueue(self, embeddings: Tensor, places: Tensor | None = None) -> None:
        """Puts embeddings (B, D), made of length one, in place of the oldest rows; of more than K the last K stay.

        ``places`` (B,) are those of their images in the data set.
        """
        size = len(self.features)
        kept = normalize(embeddings.detach().float(), dim=1)[-size:]
        rows = (self.pointer + torch.arange(len(kept), device=self.features.device)) % size
        self.features.index_copy_(0, rows, kept)
        self.places.index_fill_(0, rows, -1) if places is None else self.places.index_copy_(0, rows, places[-size:])
        self.pointer.add_(len(kept)).remainder_(size)

    def own(self, places: Tensor) -> Tensor:
        """Which rows show the very images at ``places`` (B,), as (B, K) bool: no negatives of theirs."""
        return places[:, None] == self.places


class MemoryBank(nn.Module):
    """An embedding for every image of the data set, a moving average over the epochs; its buffers travel with the checkpoint.

    ``remember`` notes the embeddings of a batch while the loss is computed, ``commit`` writes them after the optimiser step:
    v <- m v + (1 - m) f, made of length one again.

    Source: Wu et al., Instance Discrimination, arXiv:1805.01978, Sec. 3; averages as in the authors' code and in Misra & van der
        Maaten, PIRL, arXiv:1912.01991, where the first paper replaces rows.
    Deviations: none; before an image has been seen, its row is a random direction.
    Args:
        count: N, images of the data set.
        width: D of an embedding.
        momentum: m, the share of the old row that is kept.
    Shape:
        ``features`` (N, D), each row of length one.
    Raises:
        ValueError: if ``momentum`` is not in [0, 1).
    """

    dataset_state = ("features",)  # what other images begin anew

    def __init__(self, count: int, width: int, momentum: float = 0.5) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} is the share of a bank's row that is kept; pass a number in [0, 1).")
        self.momentum = momentum
        self.register_buffer("features", normalize(torch.randn(max(1, count), width), dim=1))
        self._noted: tuple[Tensor, Tensor] | None = None

    def extra_repr(self) -> str:
        """Sizes and momentum."""
        return f"{len(self.features)}, {self.features.shape[1]}, momentum={self.momentum}"

    def rows(self, places: Tensor) -> Tensor:
        """The rows of the images at ``places`` (B,) -> (B, D)."""
        return self.features[places]

    def negatives(self, places: Tensor, count: int | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows to tell the images at ``places`` (B,) from, and which of them are an image's own.

        Args:
            places: of the images of the batch.
            count: K rows are drawn for the batch, each with equal probability; None, or N or more, takes the whole bank.
            generator: on the CPU; what is drawn from.
        Shape:
            places (B,) -> rows (K, D), own (B, K) bool.
        """
        size = len(self.features)
        if count is None or count >= size:
            return self.features, places[:, None] == torch.arange(size, device=places.device)
        drawn = torch.randint(size, (count,), generator=generator).to(places.device, non_blocking=True)
        return self.features[drawn], places[:, None] == drawn

    def candidates(self, count: int | None) -> int:
        """Among how many rows an image finds its own when ``count`` rows are drawn as negatives; None takes the whole bank."""
        size = len(self.features)
        return size if count is None else min(count + 1, size)

    def remember(self, places: Tensor, embeddings: Tensor) -> None:
        """Notes embeddings (B, D) of the images at ``places`` (B,) for the next ``commit``."""
        self._noted = places, embeddings.detach()

    @torch.no_grad()
    def commit(self) -> None:
        """Writes what was noted since the last commit."""
        if self._noted is not None:
            places, embeddings = self._noted
            new = normalize(embeddings.float(), dim=1)
            mixed = self.momentum * self.features[places] + (1 - self.momentum) * new
            self.features.index_copy_(0, places, normalize(mixed, dim=1))
            self._noted = None
