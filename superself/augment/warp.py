"""Moving pixels: geometric transforms are composed into one map from output to input, and the images resampled once.

Coordinates are continuous, in pixels: pixel i covers [i, i + 1] and its centre is i + 0.5; x comes before y.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from superself.data.preprocessing import FULL_SCALE, to_float

COPY, UPRIGHT = -1, 0  # ways to resample a sample; n > 0 means interpolation at n x n points per pixel


@dataclass(frozen=True)
class Warp:
    """Where the output pixels of each sample are read in its input. All tensors are on the CPU.

    Args:
        matrix: (B, 2, 3) from coordinates (x, y, 1) of the output to those of the input, or of the bent image.
        box: (B, 4) left, top, right, bottom of the region that may be read; beyond it, its edge is repeated.
        frame: (B, 4) the region that holds pixels of the image; with a ``fill``, everything outside has that value.
        size: height and width of the output.
        fill: value of what lies outside the image; None repeats its edge.
        shows_outside: whether a step so far can have brought something from outside the image into view.
        bend: (B, 2, h, w) displacement of each pixel of the image between ``matrix`` and ``inner``.
        inner: (B, 2, 3) from the bent image to the input.
        is_bent: (B,) which samples ``bend`` changes.
    """

    matrix: Tensor
    box: Tensor
    frame: Tensor
    size: tuple[int, int]
    fill: float | None = None
    shows_outside: bool = False
    bend: Tensor | None = None
    inner: Tensor | None = None
    is_bent: Tensor | None = None

    @classmethod
    def identity(cls, images: Tensor) -> Warp:
        """The warp that leaves images (B, C, H, W) as they are."""
        b, _, h, w = images.shape
        box = torch.tensor([0.0, 0.0, w, h]).expand(b, 4)
        return cls(torch.eye(2, 3).expand(b, 2, 3), box, box, (h, w))

    def __getitem__(self, samples: slice | Tensor) -> Warp:
        """The warp of some of the samples."""
        tensors = {name: value[samples] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    def then(self, matrix: Tensor, size: tuple[int, int] | None = None, **changes) -> Warp:
        """Adds a step: ``matrix`` (B, 2, 3) maps coordinates of the new output to those of the output so far."""
        return replace(self, matrix=compose(self.matrix, matrix), size=size or self.size, **changes)

    def with_fill(self, fill: float | None, chosen: Tensor) -> Warp:
        """Surrounds the output so far of the chosen samples (B,) by ``fill``; None repeats the edge."""
        if fill is None:
            return replace(self, shows_outside=True)
        frame = torch.cat(
            [torch.maximum(self.frame[:, :2], self.box[:, :2]), torch.minimum(self.frame[:, 2:], self.box[:, 2:])], 1
        )
        box = torch.tensor([-math.inf, -math.inf, math.inf, math.inf])
        frame, box = (torch.where(chosen[:, None], n, o) for n, o in ((frame, self.frame), (box, self.box)))
        return replace(self, fill=fill, shows_outside=True, frame=frame, box=box)

    def crop(self, box: Tensor, size: tuple[int, int]) -> Warp:
        """Adds a crop of the output so far to ``box`` (B, 4), resized to ``size``; nothing beyond the box is read."""
        width, height = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
        matrix = scale_and_shift(width / size[1], height / size[0], box[:, 0], box[:, 1])
        total = self.total()
        corners = box.view(-1, 2, 2) * total.diagonal(dim1=1, dim2=2)[:, None] + total[:, None, :, 2]
        low, high = self.box.split(2, 1)
        room = 1.0 if self.fill is None else 0.0  # where edges are repeated, at least one pixel is left to repeat
        narrowed = torch.cat(  # a flip swaps the corners
            [
                torch.maximum(torch.minimum(corners.amin(1), high - room), low),
                torch.minimum(torch.maximum(corners.amax(1), low + room), high),
            ],
            1,
        )
        return self.then(matrix, size, box=torch.where(self.is_upright()[:, None], narrowed, self.box))

    def bend_by(self, displacement: Tensor, is_bent: Tensor) -> Warp:
        """Adds a bend of the output so far by displacements (B, 2, h, w), for a warp without one.

        Args:
            displacement: in pixels, zero for samples that are not bent.
            is_bent: (B,) which samples are bent.
        """
        identity = torch.eye(2, 3).expand_as(self.matrix)
        return replace(self, bend=displacement, inner=self.matrix, matrix=identity, is_bent=is_bent)

    def total(self) -> Tensor:
        """Matrices (B, 2, 3) from output to input, leaving out the bend."""
        return self.matrix if self.inner is None else compose(self.inner, self.matrix)

    def is_upright(self) -> Tensor:
        """Which samples (B,) are free of rotation, shear and bend, so that rows and columns can be resampled in turn."""
        total = self.total()
        upright = (total[:, 0, 1] == 0) & (total[:, 1, 0] == 0)
        return upright if self.is_bent is None else upright & ~self.is_bent

    def methods(self, input_size: tuple[int, int]) -> Tensor:
        """How each sample (B,) is resampled: COPY, UPRIGHT, or n for n x n points per pixel where the image shrinks.

        Each sample is judged by itself, so that its view does not depend on the other samples of the batch.
        """
        total, upright = self.total(), self.is_upright()
        spacing = total[:, :, :2].norm(dim=1).amax(1)  # input pixels from one output pixel to the next
        methods = torch.ceil(spacing - 0.25).clamp(min=1).long()  # bilinear interpolation bears a quarter more than one
        methods[upright] = UPRIGHT
        if tuple(input_size) == self.size:
            whole = torch.tensor([0.0, 0.0, self.size[1], self.size[0]])
            same = upright & (total == torch.eye(2, 3)).all(2).all(1) & (self.frame == whole).all(1)
            covered = (self.box[:, :2] <= 0).all(1) & (self.box[:, 2:] >= whole[2:]).all(1)
            methods[same & covered] = COPY
        return methods


def compose(outer: Tensor, matrix: Tensor) -> Tensor:
    """Matrices (B, 2, 3) that apply ``matrix`` first and ``outer`` second."""
    composed = outer[:, :, :2] @ matrix
    composed[:, :, 2] += outer[:, :, 2]
    return composed


def scale_and_shift(scale_x: Tensor, scale_y: Tensor, shift_x: Tensor, shift_y: Tensor) -> Tensor:
    """Matrices (B, 2, 3) that scale and shift, from four (B,)."""
    zero = torch.zeros_like(scale_x)
    return torch.stack([scale_x, zero, shift_x, zero, scale_y, shift_y], 1).view(-1, 2, 3)


def float_copy(images: Tensor) -> Tensor:
    """A copy of the images in float32; integers are scaled to [0, 1]."""
    floats = to_float(images)
    return floats.clone() if floats.data_ptr() == images.data_ptr() else floats


def gather_samples(images: Tensor, index: Tensor) -> Tensor:
    """A copy of the samples ``index`` (on the CPU) of the images."""
    return images.index_select(0, index.to(images.device, non_blocking=True))


def resample(images: Tensor, warp: Warp) -> Tensor:
    """The images as the warp maps them, antialiased where they shrink; a new tensor.

    Shape:
        images (B, C, H, W) uint8, uint16 or float -> (B, C, h, w) float32.
    """
    methods = warp.methods(images.shape[2:])
    present = sorted(set(methods.tolist()))
    if len(present) == 1:
        return _resample_with(present[0], images, warp)
    views = torch.empty(*images.shape[:2], *warp.size, device=images.device)
    for method in present:
        index = (methods == method).nonzero().squeeze(1)
        part = _resample_with(method, gather_samples(images, index), warp[index])
        views.index_copy_(0, index.to(images.device, non_blocking=True), part)
    return views


def _resample_with(method: int, images: Tensor, warp: Warp) -> Tensor:
    if method == COPY:
        return float_copy(images)
    return _resample_upright(images, warp) if method == UPRIGHT else _resample_freely(to_float(images), warp, method)


def _resample_upright(images: Tensor, warp: Warp) -> Tensor:
    """Crops, flips and scalings: first along x, then along y, each a weighted sum of a few rows of the table of pixels.

    The weights are a triangle as wide as the pixels of the output, at least as those of the input, which is what
    torchvision and Pillow call antialiased bilinear interpolation.
    """
    if warp.fill:
        return _resample_upright(to_float(images) - warp.fill, replace(warp, fill=0.0)).add_(warp.fill)
    total = warp.total()
    scale = total.diagonal(dim1=1, dim2=2)
    counts = [math.ceil(2 * reach) for reach in scale.abs().amax(0).clamp(min=1).tolist()]
    numbers = torch.cat([total[:, :, 2], scale, warp.box, warp.frame], 1).to(
        images.device, non_blocking=True
    )  # (B, 12)
    full = FULL_SCALE.get(images.dtype, 1.0)
    for axis in (0, 1):
        filled = warp.fill is not None
        index, weight = axis_weights(numbers[:, axis::2], images.shape[3], warp.size[1 - axis], counts[axis], filled)
        weight, full = weight / full, 1.0
        columns = images.transpose(2, 3).to(torch.float32, memory_format=torch.contiguous_format)
        images = weighted_rows(columns.contiguous(), index, weight)  # (B, C, w, H), then (B, C, h, w)
    return images


def axis_weights(numbers: Tensor, length: int, size: int, count: int, filled: bool) -> tuple[Tensor, Tensor]:
    """Which input pixels make an output pixel along one axis, and with which weights.

    Args:
        numbers: shift and scale from output to input, both ends of the box, both ends of the frame.
        length: pixels of the input.
        size: pixels of the output.
        count: input pixels that an output pixel can depend on.
        filled: pixels outside the frame count as 0; otherwise the edge of the box is repeated.
    Shape:
        numbers (B, 6) -> pixel (B, size, count) int64, weight (B, size, count).
    """
    shift, scale, low, high, first, last = numbers.view(-1, 6, 1, 1).unbind(1)
    centre = shift + scale * (torch.arange(size, device=numbers.device).view(-1, 1) + 0.5)  # (B, size, 1)
    reach = scale.abs().clamp(min=1)
    centre = torch.minimum(torch.maximum(centre, low), high)
    pixel = torch.ceil(centre - reach - 0.5) + torch.arange(count, device=numbers.device)  # (B, size, count)
    weight = (1 - (pixel + 0.5 - centre).abs() / reach).clamp_(min=0)
    weight = weight * ((pixel + 1 > low) & (pixel < high))
    weight = weight / weight.cumsum(2)[:, :, -1:]  # unlike a sum, it does not depend on zeros that follow
    if filled:
        return pixel.clamp(0, length - 1).long(), weight * overlap(pixel + 0.5, first, last)
    return torch.minimum(torch.maximum(pixel, low.floor()), high.ceil() - 1).long(), weight


def overlap(centre: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The fraction of a pixel around ``centre`` that lies between ``low`` and ``high``."""
    return (torch.minimum(centre + 0.5, high) - torch.maximum(centre - 0.5, low)).clamp_(min=0)


def weighted_rows(images: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Rows that are weighted sums of rows: out[b, c, i] = sum_k weight[b, i, k] images[b, c, index[b, i, k]].

    Shape:
        images (B, C, H, W) float32, index and weight (B, h, K) -> (B, C, h, W).
    """
    b, c, h, w = images.shape
    first = torch.arange(0, b * c * h, h, device=images.device).view(b, c, 1, 1)
    rows = (first + index[:, None]).flatten(0, 2)  # (B C h, K) into the table of all rows
    weight = weight[:, None].expand(b, c, *weight.shape[1:]).flatten(0, 2)
    table = images.contiguous().view(-1, w)
    return F.embedding_bag(rows, table, per_sample_weights=weight, mode="sum").view(b, c, -1, w)


def _resample_freely(images: Tensor, warp: Warp, n: int) -> Tensor:
    """Rotations, shears and bends: bilinear interpolation, averaged over n x n points per pixel."""
    warp = on_device(warp, images.device)
    box, frame = warp.box[:, None, None], warp.frame[:, None, None]  # (B, 1, 1, 4)
    result = 0.0
    for step_y, step_x in product(range(n), repeat=2):
        position = input_positions(warp, (step_x + 0.5) / n, (step_y + 0.5) / n)
        position = torch.minimum(torch.maximum(position, box[..., :2] + 0.5), box[..., 2:] - 0.5)
        if warp.fill is None:
            values = bilinear_sample(images, position)
        else:
            inside = overlap(position, frame[..., :2], frame[..., 2:]).prod(3)[:, None]
            nearest = torch.minimum(torch.maximum(position, frame[..., :2] + 0.5), frame[..., 2:] - 0.5)
            values = warp.fill + inside * (bilinear_sample(images, nearest) - warp.fill)
        result = result + values
    return result / n**2


def resample_masks(masks: Tensor, warp: Warp) -> Tensor:
    """Segment maps as the warp maps them: the label of the nearest pixel, and 0 outside the image.

    Shape:
        masks (B, M, H, W) integer or bool -> (B, M, h, w) of the same type.
    """
    if bool((warp.methods(masks.shape[2:]) == COPY).all()):
        return masks
    height, width = masks.shape[2:]
    warp = on_device(warp, masks.device)
    position = input_positions(warp, 0.5, 0.5)  # (B, h, w, 2)
    inside = torch.ones(position.shape[:3], dtype=torch.bool, device=masks.device)
    for region in (warp.box[:, None, None], warp.frame[:, None, None]):
        inside &= ((position >= region[..., :2]) & (position < region[..., 2:])).all(3)
    x, y = position.floor().long().unbind(3)
    pixel = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)  # (B, h, w)
    labels = masks.flatten(2).gather(2, pixel.flatten(1)[:, None].expand(-1, masks.shape[1], -1))
    return labels.unflatten(2, warp.size).masked_fill_(~inside[:, None], 0)


def on_device(warp: Warp, device: torch.device) -> Warp:
    """The warp with its tensors on the device."""
    tensors = {name: value for name, value in vars(warp).items() if isinstance(value, Tensor)}
    return replace(warp, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})


def input_positions(warp: Warp, offset_x: float, offset_y: float) -> Tensor:
    """Where each output pixel is read in the input (B, h, w, 2), for points at an offset in [0, 1] within the pixels."""
    y, x = (torch.arange(side, device=warp.matrix.device) for side in warp.size)
    points = torch.stack(torch.meshgrid(x + offset_x, y + offset_y, indexing="xy"), 2)[None]  # (1, h, w, 2)
    position = apply_affine(warp.matrix, points)
    if warp.bend is not None:
        bend = bilinear_sample(warp.bend, position).permute(0, 2, 3, 1)
        position = apply_affine(warp.inner, position + bend)
    return position


def apply_affine(matrix: Tensor, points: Tensor) -> Tensor:
    """(B, 2, 3) times points (B, h, w, 2) of coordinates x, y -> (B, h, w, 2)."""
    x, y = points.unbind(3)
    m = matrix.view(-1, 6, 1, 1)
    return torch.stack([m[:, 0] * x + m[:, 1] * y + m[:, 2], m[:, 3] * x + m[:, 4] * y + m[:, 5]], 3)


def bilinear_sample(images: Tensor, position: Tensor) -> Tensor:
    """Bilinear values of images (B, C, H, W) at positions (B, h, w, 2) in pixels -> (B, C, h, w)."""
    x, y = position.unbind(3)
    grid = torch.stack([x * (2 / images.shape[3]) - 1, y * (2 / images.shape[2]) - 1], 3)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
