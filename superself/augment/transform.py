"""Random functions of a batch of images, with parameters drawn for each sample, and ways to combine them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from superself.augment.warp import Warp, float_copy, gather_samples, resample, resample_masks

CHUNK = 1_200_000  # values in a chunk of images on the CPU, small enough to stay in the cache from step to step


class Transform(nn.Module):
    """A random function of images, with parameters drawn for each sample.

    A subclass says how many random numbers it needs per sample and writes ``transform``; one that moves pixels derives
    from ``GeometricTransform``. All numbers of a call are drawn as one block (B, draws) from the generator, row by row, so
    equal seeds give equal views however the images are split into batches. They are drawn and inspected on the CPU, so
    that choosing samples does not wait for the device. Everything is computed in float32, also under autocast.

    Args:
        draws: uniform random numbers that ``transform`` needs per sample.
        p: probability with which each sample is transformed; the others stay exactly as they are.
    Shape:
        images (B, C, H, W) uint8, uint16 or float in [0, 1] on any device -> (B, C, h, w) float32.
    Raises:
        ValueError: if ``p`` is not a probability, or the input is not a batch of images.
    """

    def __init__(self, draws: int = 0, p: float = 1.0) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p={p} is not a probability; pass a number from 0 to 1.")
        self.p = p
        self.draws = draws + (p < 1)

    @torch.no_grad()
    def forward(self, images: Tensor, generator: torch.Generator | None = None, masks: Tensor | None = None) -> Any:
        """Transformed copies of the images, and of the masks if there are any.

        Args:
            images: the batch; it is not modified.
            generator: a CPU generator; None uses torch's global one.
            masks: segment maps (B, M, H, W) or (B, H, W), integer or bool. Geometric steps move them with the images,
                taking the nearest label; other steps leave them alone. Outside the image they are 0.
        Returns:
            The views, or with ``masks`` a tuple of the views and their masks (for several views, two lists).
        """
        if images.ndim != 4:
            raise ValueError(
                f"{type(self).__name__} needs a batch of images (B, C, H, W), got a tensor of shape "
                f"{tuple(images.shape)}; add the missing dimension, e.g. with images[None]."
            )
        numbers = torch.rand(len(images), self.draws, generator=generator)
        with torch.autocast(images.device.type, enabled=False):
            if masks is None:
                return self.run_in_chunks(images, numbers)
            moved = self.move_masks(checked_masks(masks, images), numbers)
            views = self.run_in_chunks(images, numbers)
            return views, matching_masks(moved, views, masks.ndim == 4)

    def out_channels(self, channels: int) -> int:
        """The number of channels of the views of images with ``channels`` channels."""
        return channels

    def run_in_chunks(self, images: Tensor, numbers: Tensor) -> Any:
        """All samples transformed: a few at a time on the CPU, all at once elsewhere."""
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
        """Does once what all chunks of the batch share; the result transforms one chunk."""
        return lambda chunk, part: self.run(float_copy(chunk), numbers[part])

    def run(self, images: Tensor, numbers: Tensor) -> Tensor:
        """The selected samples transformed, the others as they are. May overwrite ``images``, which are float32."""
        return self.for_selected(self.transform, images, numbers)

    def for_selected(self, function: Callable[[Tensor, Tensor], Tensor], batch: Tensor, numbers: Tensor) -> Tensor:
        """Applies a function of (batch, numbers) to the samples that ``p`` selects, and writes them into ``batch``."""
        if self.p == 1:
            return function(batch, numbers)
        index = (numbers[:, 0] < self.p).nonzero().squeeze(1)
        if len(index) == 0:
            return batch
        return scatter_samples(batch, index, function(gather_samples(batch, index), numbers[index, 1:]))

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Images (B, C, H, W) in float32, which may be overwritten, and numbers (B, draws) on the CPU -> images."""
        raise NotImplementedError

    def move_masks(self, masks: Tensor, numbers: Tensor) -> Any:
        """Masks (B, M, H, W) moved as the pixels of images are moved by the same numbers; may overwrite ``masks``."""
        return masks

    def can_join(self, warp: Warp) -> bool:
        """Whether this step can be added to the warp, so that the images are resampled only once."""
        return False


def checked_masks(masks: Tensor, images: Tensor) -> Tensor:
    """A copy of the masks as (B, M, H, W), if they fit the images."""
    if masks.is_floating_point() or masks.is_complex():
        raise ValueError(
            f"masks hold labels, which must be integer or bool, got {masks.dtype}; pass e.g. masks.long()."
        )
    if masks.ndim not in (3, 4) or len(masks) != len(images) or masks.shape[-2:] != images.shape[-2:]:
        raise ValueError(
            f"masks of shape {tuple(masks.shape)} do not fit images of shape {tuple(images.shape)}; pass (B, H, W) or "
            "(B, M, H, W) with the size of the images."
        )
    return (masks if masks.ndim == 4 else masks[:, None]).clone()


def matching_masks(masks: Any, views: Any, several: bool) -> Any:
    """The masks of each view, without the dimension of maps if only one map was given, if they fit the views."""
    if isinstance(masks, list):
        return [matching_masks(mask, view, several) for mask, view in zip(masks, views, strict=True)]
    if masks.shape[-2:] != views.shape[-2:]:
        raise ValueError(
            f"views have size {tuple(views.shape[-2:])} but their masks {tuple(masks.shape[-2:])}: a step changes the "
            "size without moving masks; derive it from GeometricTransform, or give it a method move_masks."
        )
    return masks if several else masks.squeeze(-3)


@cache
def keep_freed_memory() -> None:
    """Makes the process keep freed memory; needed once.

    glibc returns freed blocks above a threshold to the system and fetches them again page by page. The threshold follows
    the largest block freed so far, up to 32 MiB. This frees such a block; chunks then take two thirds of the time.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


class GeometricTransform(Transform):
    """A transform that moves pixels. Successive ones are composed and resample the images once.

    A subclass writes ``warp``, which adds its own step to the warp so far, from numbers (B, draws).
    """

    has_bend = False  # whether it adds a bend; a warp can hold one
    fill: float | None = None  # value of what it brings in from outside the image; None repeats the edge

    def shows_outside(self) -> bool:
        """Whether it can bring something from outside the image into view."""
        return False

    def warp(self, warp: Warp, numbers: Tensor) -> Warp:
        """The warp so far with this transform's step added, from its numbers (B, draws)."""
        raise NotImplementedError

    def can_join(self, warp: Warp) -> bool:
        second_bend = self.has_bend and warp.bend is not None
        second_fill = self.shows_outside() and warp.shows_outside and self.fill != warp.fill
        return not second_bend and not second_fill

    def selected(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Which samples (B,) are transformed, and the remaining numbers."""
        everyone = torch.ones(len(numbers), dtype=torch.bool)
        return (everyone, numbers) if self.p == 1 else (numbers[:, 0] < self.p, numbers[:, 1:])

    def prepare(self, images: Tensor, numbers: Tensor) -> Callable[[Tensor, slice], Tensor]:
        warp = self.warp(Warp.identity(images), numbers)
        return lambda chunk, part: resample(chunk, warp[part])

    def run(self, images: Tensor, numbers: Tensor) -> Tensor:
        return resample(images, self.warp(Warp.identity(images), numbers))

    def move_masks(self, masks: Tensor, numbers: Tensor) -> Tensor:
        return resample_masks(masks, self.warp(Warp.identity(masks), numbers))


class Compose(Transform):
    """Transforms one after another; successive geometric ones resample once."""

    def __init__(self, transforms: Iterable[Transform]) -> None:
        flat = [part for t in transforms for part in (t.transforms if type(t) is Compose else [t])]
        super().__init__(sum(t.draws for t in flat))
        self.transforms = nn.ModuleList(flat)

    def out_channels(self, channels: int) -> int:
        for part in self.transforms:
            channels = part.out_channels(channels)
        return channels

    def prepare(self, images: Tensor, numbers: Tensor) -> Callable[[Tensor, slice], Tensor]:
        warp, steps = Warp.identity(images), self.steps(numbers)
        while steps and steps[0][0].can_join(warp):
            part, part_numbers = steps.pop(0)
            warp = part.warp(warp, part_numbers)
        return lambda chunk, at: run_steps([(t, n[at]) for t, n in steps], resample(chunk, warp[at]))

    def steps(self, numbers: Tensor) -> list[tuple[Transform, Tensor]]:
        """Each transform with its columns of the numbers."""
        return list(zip(self.transforms, numbers.split([t.draws for t in self.transforms], 1), strict=True))

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return run_steps(self.steps(numbers), images)

    def move_masks(self, masks: Tensor, numbers: Tensor) -> Any:
        return run_steps(self.steps(numbers), masks, "move_masks", resample_masks)


def run_steps(
    steps: Iterable[tuple[Transform, Tensor]],
    batch: Tensor,
    method: str = "run",
    resample: Callable[[Tensor, Warp], Tensor] = resample,
) -> Any:
    """Transforms with their numbers one after another; successive geometric ones are composed and resample once.

    Args:
        steps: each transform with its numbers.
        batch: images, or masks.
        method: of the transforms that do not move pixels: "run" for images, "move_masks" for masks.
        resample: applies the composed warp to the batch.
    """
    warp = None
    for part, numbers in steps:
        if warp is not None and not part.can_join(warp):
            batch, warp = resample(batch, warp), None
        start = Warp.identity(batch) if warp is None else warp
        if part.can_join(start):
            warp = part.warp(start, numbers)
        else:
            batch = getattr(part, method)(batch, numbers)
    return batch if warp is None else resample(batch, warp)


class RandomApply(Transform):
    """All of the transforms for a sample with probability ``p``, otherwise none; they must keep the size."""

    def __init__(self, transforms: Iterable[Transform], p: float = 0.5) -> None:
        inner = Compose(transforms)
        super().__init__(inner.draws, p)
        self.inner = inner

    def out_channels(self, channels: int) -> int:
        return self.inner.out_channels(channels)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return self.inner.run(images, numbers)

    def move_masks(self, masks: Tensor, numbers: Tensor) -> Tensor:
        return self.for_selected(self.inner.move_masks, masks, numbers)


class RandomChoice(Transform):
    """For every sample ``count`` of the transforms, drawn one by one with replacement.

    With ``count`` above 1 all transforms must keep the size of the images.

    Args:
        transforms: to choose from.
        weights: relative probability of each; None makes them equal.
        count: how many are applied to a sample, one after another.
        p: probability for each sample.
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

    def out_channels(self, channels: int) -> int:
        return self.transforms[0].out_channels(channels)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return self.apply_choices(images, numbers, "run")

    def move_masks(self, masks: Tensor, numbers: Tensor) -> Tensor:
        return self.for_selected(lambda some, rest: self.apply_choices(some, rest, "move_masks"), masks, numbers)

    def apply_choices(self, batch: Tensor, numbers: Tensor, method: str) -> Tensor:
        """``count`` times one transform for every sample; samples that drew the same one go through it together."""
        for numbers_of_turn in numbers.chunk(self.count, 1):
            choice = torch.bucketize(numbers_of_turn[:, 0].contiguous(), self.edges, right=True)  # (B,)
            result = None
            for k, part in enumerate(self.transforms):
                index = (choice == k).nonzero().squeeze(1)
                if len(index):
                    part_numbers = numbers_of_turn[index, 1 : 1 + part.draws]
                    some = getattr(part, method)(gather_samples(batch, index), part_numbers)
                    result = some.new_empty(len(batch), *some.shape[1:]) if result is None else result
                    result = scatter_samples(result, index, some)
            batch = result
        return batch


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

    def out_channels(self, channels: int) -> int:
        return self.transforms[0].out_channels(channels)

    def run_in_chunks(self, images: Tensor, numbers: Tensor) -> list[Tensor]:
        return [part.run_in_chunks(images, part_numbers) for part, part_numbers in self.parts(numbers)]

    def move_masks(self, masks: Tensor, numbers: Tensor) -> list[Tensor]:
        return [part.move_masks(masks.clone(), part_numbers) for part, part_numbers in self.parts(numbers)]

    def parts(self, numbers: Tensor) -> list[tuple[Transform, Tensor]]:
        """The transform of each view with its columns of the numbers."""
        return list(zip(self.transforms, numbers.split([t.draws for t in self.transforms], 1), strict=True))


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
    """Any function from a batch of float images to one view or a list of views; it draws its own random numbers.

    Args:
        function: called with images (B, C, H, W), which it may overwrite.
        count: how many views are needed; a function that returns one is called that often. None keeps what it returns.
        channels: of the views; None if they have as many as the images.
    Raises:
        ValueError: when called, if the function returns another number of views, or if masks are passed.
    """

    def __init__(
        self, function: Callable[[Tensor], Any], count: int | None = None, channels: int | None = None
    ) -> None:
        super().__init__()
        self.function, self.count, self.channels = function, count, channels

    def out_channels(self, channels: int) -> int:
        return self.channels or channels

    def run_in_chunks(self, images: Tensor, numbers: Tensor) -> Any:
        views = self.function(float_copy(images))
        parts = [views] if isinstance(views, Tensor) else views
        if not isinstance(parts, (list, tuple)) or not all(isinstance(part, Tensor) and part.ndim for part in parts):
            found = "a scalar" if isinstance(views, Tensor) else f"a {type(views).__name__}"
            raise TypeError(
                f"the augmentation returned {found}, but views (B, C, H, W) of the batch are needed; return a tensor or a list "
                "of tensors."
            )
        if self.count is None:
            return views
        if isinstance(views, Tensor):
            views = [views, *(self.function(float_copy(images)) for _ in range(self.count - 1))]
        if len(views) != self.count:
            raise ValueError(
                f"the augmentation returns {len(views)} views, but {self.count} are needed; return a list of that many, "
                "or one tensor."
            )
        return views

    def run(self, images: Tensor, numbers: Tensor) -> Tensor:
        return self.function(images)

    def move_masks(self, masks: Tensor, numbers: Tensor) -> Tensor:
        raise ValueError(
            "masks were passed, but a function says nothing about how it moves pixels; write it as a subclass of "
            "Transform (pixels stay where they are) or of GeometricTransform."
        )


def scatter_samples(images: Tensor, index: Tensor, samples: Tensor) -> Tensor:
    """Writes samples to the places ``index`` (on the CPU) of the images, and returns the images."""
    if samples.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"a transform with p < 1, or one in a RandomChoice, turns images of shape {tuple(images.shape[1:])} into "
            f"{tuple(samples.shape[1:])}, so they no longer form a batch; use transforms that keep the size, or give all "
            "of them the same output size."
        )
    return images.index_copy_(0, index.to(images.device, non_blocking=True), samples)


def per_sample(parameters: Tensor, images: Tensor) -> Tensor:
    """Parameters (B,) from the CPU as (B, 1, 1, 1) on the device of the images."""
    return parameters.to(images.device, non_blocking=True).view(-1, 1, 1, 1)


def uniform_between(numbers: Tensor, low: float, high: float) -> Tensor:
    """Numbers in [0, 1) scaled to [low, high)."""
    return low + (high - low) * numbers


def as_range(value: float | tuple[float, float]) -> tuple[float, float]:
    """Bounds unchanged, or (v, v) for a single number v."""
    return (value, value) if isinstance(value, (int, float)) else (value[0], value[1])
