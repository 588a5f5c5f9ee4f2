"""Random functions of a batch of images, with parameters of its own for every sample, and what joins them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from superself.augment.resample import Warp, float_copy, resample

CHUNK = 1_200_000  # numbers of a chunk of images on the CPU, so that the caches keep them from one step to the next


class Transform(nn.Module):
    """A random function of images, with parameters of its own for every sample.

    A subclass says how many random numbers it needs for a sample, and writes ``transform``. All numbers of a call are
    one block (B, draws) from the generator, row by row, so that equal seeds give equal views whatever a batch is split
    into. They are drawn and looked at on the CPU, where choosing samples waits for no device.

    Args:
        draws: uniform random numbers that ``transform`` needs for a sample.
        p: probability for each sample to be transformed; the others stay as they are.
    Shape:
        images (B, C, H, W) uint8, uint16 or float in [0, 1] on any device -> (B, C, h, w) float32.
    Raises:
        ValueError: if ``p`` is not a probability, or the images are no batch.
    """

    def __init__(self, draws: int = 0, p: float = 1.0) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p={p} is not a probability; pass a number from 0 to 1.")
        self.p = p
        self.draws = draws + (p < 1)

    @torch.no_grad()
    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Any:
        """Transformed copies of the images; ``generator`` is a CPU generator (None: torch's own)."""
        if images.ndim != 4:
            raise ValueError(
                f"{type(self).__name__} needs a batch of images (B, C, H, W), not a tensor of shape "
                f"{tuple(images.shape)}; add the missing dimension, e.g. with images[None]."
            )
        return self.in_chunks(images, torch.rand(len(images), self.draws, generator=generator))

    def in_chunks(self, images: Tensor, numbers: Tensor) -> Any:
        """All samples transformed: a few at a time on the CPU, at once elsewhere."""
        run = self.prepare(images, numbers)
        size = len(images) if images.device.type != "cpu" else max(1, CHUNK // images[0].numel())
        if size >= len(images):
            return run(images, slice(None))
        keep_freed_memory()
        views = None
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            chunk = run(images[part], part)
            views = chunk.new_empty(len(images), *chunk.shape[1:]) if views is None else views
            views[part] = chunk
        return views

    def prepare(self, images: Tensor, numbers: Tensor) -> Callable[[Tensor, slice], Tensor]:
        """Does for the whole batch what need not be done for every chunk; the result transforms a chunk of it."""
        return lambda chunk, part: self.run(float_copy(chunk), numbers[part])

    def run(self, images: Tensor, numbers: Tensor) -> Tensor:
        """The chosen samples transformed, the others as they are. May write into ``images``, which are float32."""
        if self.p == 1:
            return self.transform(images, numbers)
        index = (numbers[:, 0] < self.p).nonzero().squeeze(1)
        return (
            scatter_samples(images, index, self.transform(gather_samples(images, index), numbers[index, 1:]))
            if len(index)
            else images
        )

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Images (B, C, H, W) in float32, which it may overwrite, and numbers (B, draws) on the CPU -> images."""
        raise NotImplementedError


@cache
def keep_freed_memory() -> None:
    """Lets the process keep freed memory, once.

    glibc returns it to the system, to fetch it anew page by page, above a threshold that follows the largest block
    freed so far, up to 32 MiB. This frees such a block; chunks then take two thirds of the time.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


class Geometric(Transform):
    """A transform that moves pixels. Successive ones are composed and resample the images once.

    A subclass writes ``warp``: the warp so far, and numbers (B, draws) -> the warp with its own step added.
    """

    bends = False  # whether it adds a bend, of which a warp can hold one

    def warp(self, warp: Warp, numbers: Tensor) -> Warp:
        """The warp so far with this transform's step added, from its numbers (B, draws)."""
        raise NotImplementedError

    def chosen(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Which samples (B,) take part, and the numbers that are left."""
        everyone = torch.ones(len(numbers), dtype=torch.bool)
        return (everyone, numbers) if self.p == 1 else (numbers[:, 0] < self.p, numbers[:, 1:])

    def prepare(self, images: Tensor, numbers: Tensor) -> Callable[[Tensor, slice], Tensor]:
        warp = self.warp(Warp.identity(images), numbers)
        return lambda chunk, part: resample(chunk, warp[part])

    def run(self, images: Tensor, numbers: Tensor) -> Tensor:
        return resample(images, self.warp(Warp.identity(images), numbers))


class Compose(Transform):
    """Transforms one after another; geometric ones that follow each other resample once."""

    def __init__(self, transforms: Iterable[Transform]) -> None:
        flat = [part for t in transforms for part in (t.transforms if type(t) is Compose else [t])]
        super().__init__(sum(t.draws for t in flat))
        self.transforms = nn.ModuleList(flat)

    def prepare(self, images: Tensor, numbers: Tensor) -> Callable[[Tensor, slice], Tensor]:
        warp, steps = Warp.identity(images), self.steps(numbers)
        while steps and can_join(steps[0][0], warp):
            part, own_numbers = steps.pop(0)
            warp = part.warp(warp, own_numbers)
        return lambda chunk, at: run_steps([(t, n[at]) for t, n in steps], resample(chunk, warp[at]))

    def steps(self, numbers: Tensor) -> list[tuple[Transform, Tensor]]:
        """Each transform with its columns of the numbers."""
        return list(zip(self.transforms, numbers.split([t.draws for t in self.transforms], 1), strict=True))

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return run_steps(self.steps(numbers), images)


def can_join(part: Transform, warp: Warp) -> bool:
    """Whether the part can be added to the warp, so that both are one resampling."""
    return isinstance(part, Geometric) and not (part.bends and warp.bend is not None)


def run_steps(steps: Iterable[tuple[Transform, Tensor]], images: Tensor) -> Tensor:
    """Transforms with their numbers one after another; geometric ones are gathered and resample once."""
    warp = None
    for part, numbers in steps:
        if warp is not None and not can_join(part, warp):
            images, warp = resample(images, warp), None
        if isinstance(part, Geometric):
            warp = part.warp(warp or Warp.identity(images), numbers)
        else:
            images = part.run(images, numbers)
    return images if warp is None else resample(images, warp)


class RandomApply(Transform):
    """All of the transforms for a sample with probability ``p``, none otherwise; they must keep the size."""

    def __init__(self, transforms: Iterable[Transform], p: float = 0.5) -> None:
        inner = Compose(transforms)
        super().__init__(inner.draws, p)
        self.inner = inner

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return self.inner.run(images, numbers)


class RandomChoice(Transform):
    """For every sample ``count`` of the transforms, drawn one by one with the given weights (None: equal ones).

    With ``count`` above 1 a transform can come twice, and all must keep the size of the images.
    """

    def __init__(
        self, transforms: Sequence[Transform], weights: Sequence[float] | None = None, count: int = 1, p: float = 1.0
    ) -> None:
        super().__init__(count * (1 + max(t.draws for t in transforms)), p)
        weights = [1.0] * len(transforms) if weights is None else weights
        if len(weights) != len(transforms):
            raise ValueError(
                f"RandomChoice has {len(transforms)} transforms and {len(weights)} weights; pass one weight for each."
            )
        self.transforms = nn.ModuleList(transforms)
        self.count = count
        self.edges = torch.tensor(weights, dtype=torch.float64).cumsum(0).div(sum(weights))[:-1].float()

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        for own_numbers in numbers.chunk(self.count, 1):
            images = self.one_each(images, own_numbers)
        return images

    def one_each(self, images: Tensor, numbers: Tensor) -> Tensor:
        """One transform for every sample; samples that drew the same are transformed together."""
        choice = torch.bucketize(numbers[:, 0].contiguous(), self.edges, right=True)  # (B,) which transform
        result = None
        for k, part in enumerate(self.transforms):
            index = (choice == k).nonzero().squeeze(1)
            if len(index):
                views = part.run(gather_samples(images, index), numbers[index, 1 : 1 + part.draws])
                result = views.new_empty(len(images), *views.shape[1:]) if result is None else result
                result = scatter_samples(result, index, views)
        return result


class Views(Transform):
    """Several views of every image, as a list of (B, C, H, W).

    Args:
        transforms: one transform for all views, or a list with one for each.
        count: how many views; needed for one transform, otherwise known from the list.
    """

    def __init__(self, transforms: Transform | Sequence[Transform], count: int | None = None) -> None:
        parts = [transforms] * (count or 2) if isinstance(transforms, nn.Module) else list(transforms)
        if count not in (None, len(parts)):
            raise ValueError(f"Views has {len(parts)} transforms for count={count} views; pass one for each view.")
        super().__init__(sum(t.draws for t in parts))
        self.transforms = nn.ModuleList(parts)

    def in_chunks(self, images: Tensor, numbers: Tensor) -> list[Tensor]:
        parts = numbers.split([t.draws for t in self.transforms], 1)
        return [t.in_chunks(images, own_numbers) for t, own_numbers in zip(self.transforms, parts, strict=True)]


class MultiCrop(Views):
    """Views of two sizes: large ones, then small ones.

    Args:
        large: one transform for each large view.
        small: the transform of every small view.
        count: how many small views.

    Source: Caron et al., SwAV, arXiv:2006.09882, "multi-crop".
    """

    def __init__(self, large: Sequence[Transform], small: Transform, count: int = 6) -> None:
        super().__init__([*large, *[small] * count])


class Lambda(Transform):
    """Any function from a batch of float images to one view or a list of them; its randomness is its own.

    Args:
        function: called with images (B, C, H, W) that it may overwrite.
        count: how many views are needed; a function that gives one is called as often. None takes what it gives.
    Raises:
        ValueError: when called, if it gives another number of views.
    """

    def __init__(self, function: Callable[[Tensor], Any], count: int | None = None) -> None:
        super().__init__()
        self.function, self.count = function, count

    def in_chunks(self, images: Tensor, numbers: Tensor) -> Any:
        views = self.function(float_copy(images))
        if self.count is None:
            return views
        if isinstance(views, Tensor):
            views = [views, *(self.function(float_copy(images)) for _ in range(self.count - 1))]
        if len(views) != self.count:
            raise ValueError(
                f"the augmentation gives {len(views)} views where {self.count} are needed; return a list of that many, "
                "or one tensor."
            )
        return views

    def run(self, images: Tensor, numbers: Tensor) -> Tensor:
        return self.function(images)


def gather_samples(images: Tensor, index: Tensor) -> Tensor:
    """The samples ``index`` (on the CPU) of the images, copied."""
    return images.index_select(0, index.to(images.device, non_blocking=True))


def scatter_samples(images: Tensor, index: Tensor, chosen: Tensor) -> Tensor:
    """Writes the chosen samples back to their places ``index`` (on the CPU) and returns the images."""
    if chosen.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"a transform with p < 1, or one of a choice, gives images of {tuple(chosen.shape[1:])} beside others of "
            f"{tuple(images.shape[1:])}; use transforms that keep the size, or one size for all."
        )
    return images.index_copy_(0, index.to(images.device, non_blocking=True), chosen)


def per_sample(parameters: Tensor, images: Tensor) -> Tensor:
    """Parameters (B,) from the CPU beside the images, as (B, 1, 1, 1)."""
    return parameters.to(images.device, non_blocking=True).view(-1, 1, 1, 1)


def uniform_between(numbers: Tensor, low: float, high: float) -> Tensor:
    """Numbers in [0, 1) spread over [low, high)."""
    return low + (high - low) * numbers


def as_range(value: float | tuple[float, float]) -> tuple[float, float]:
    """Bounds as they are, or (v, v) of one number v."""
    return (value, value) if isinstance(value, (int, float)) else (value[0], value[1])
