"""Moving pixels: geometric transforms composed into one map from output to input, and one resampling by it.

Coordinates are continuous, in pixels: pixel i covers [i, i + 1], its centre is i + 0.5; x comes before y.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from superself.data.preprocessing import FULL_SCALE, to_float


@dataclass(frozen=True)
class Warp:
    """Where in its input each sample's output is read. All tensors are on the CPU.

    Args:
        matrix: (B, 2, 3) from coordinates (x, y, 1) of the output to those of the input, or of the bent image.
        box: (B, 4) left, top, right, bottom of the part of the input that may be read.
        size: height and width of the output.
        shrink: how many input pixels an output pixel spans at most, over all samples that could be drawn.
        upright: whether every matrix is free of rotation and shear, so that rows and columns can be resampled in turn.
        fill: what lies around the box; None repeats its edge.
        bend: (B, 2, h, w) displacement of each pixel of the image between ``matrix`` and ``inner``.
        inner: (B, 2, 3) from the bent image to the input.
    """

    matrix: Tensor
    box: Tensor
    size: tuple[int, int]
    shrink: float = 1.0
    upright: bool = True
    fill: float | None = None
    bend: Tensor | None = None
    inner: Tensor | None = None

    @classmethod
    def identity(cls, images: Tensor) -> Warp:
        """The warp that leaves images (B, C, H, W) as they are."""
        b, _, h, w = images.shape
        return cls(torch.eye(2, 3).expand(b, 2, 3), torch.tensor([0.0, 0.0, w, h]).expand(b, 4), (h, w))

    def __getitem__(self, samples: slice) -> Warp:
        """The warp of some of the samples."""
        bend, inner = (tensor if tensor is None else tensor[samples] for tensor in (self.bend, self.inner))
        return replace(self, matrix=self.matrix[samples], box=self.box[samples], bend=bend, inner=inner)

    def then(self, matrix: Tensor, size: tuple[int, int] | None = None, **changes) -> Warp:
        """Adds a step: ``matrix`` (B, 2, 3) maps coordinates of the new output to those of the output so far."""
        composed = self.matrix[:, :, :2] @ matrix
        composed[:, :, 2] += self.matrix[:, :, 2]
        return replace(self, matrix=composed, size=size or self.size, **changes)

    def crop(self, box: Tensor, size: tuple[int, int]) -> Warp:
        """Adds a crop of the output so far to ``box`` (B, 4), resized to ``size``; nothing beyond the box is read."""
        width, height = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
        matrix = scale_and_shift(width / size[1], height / size[0], box[:, 0], box[:, 1])
        shrink = self.shrink * max(self.size[0] / size[0], self.size[1] / size[1], 1.0)
        read = self.box
        if self.upright:
            corners = box.view(-1, 2, 2) * self.matrix.diagonal(dim1=1, dim2=2)[:, None] + self.matrix[:, None, :, 2]
            low, high = corners.amin(1), corners.amax(1)  # (B, 2); a flip swaps the corners
            read = torch.cat([torch.maximum(read[:, :2], low), torch.minimum(read[:, 2:], high)], 1)
        return self.then(matrix, size, shrink=shrink, box=read)

    def bend_by(self, displacement: Tensor, fill: float | None) -> Warp:
        """Adds a bend of the output so far by displacements (B, 2, h, w) in pixels; the warp must not be bent yet."""
        identity = torch.eye(2, 3).expand_as(self.matrix)
        return replace(self, bend=displacement, inner=self.matrix, matrix=identity, upright=False, fill=fill)

    def is_identity(self) -> bool:
        """Whether the output is the input; needs the size of the input as ``box``."""
        return (
            self.bend is None
            and torch.equal(self.matrix, torch.eye(2, 3).expand_as(self.matrix))
            and bool((self.box == torch.tensor([0.0, 0.0, self.size[1], self.size[0]])).all())
        )


def scale_and_shift(scale_x: Tensor, scale_y: Tensor, move_x: Tensor, move_y: Tensor) -> Tensor:
    """Matrices (B, 2, 3) that scale and move, from four (B,)."""
    zero = torch.zeros_like(scale_x)
    return torch.stack([scale_x, zero, move_x, zero, scale_y, move_y], 1).view(-1, 2, 3)


def float_copy(images: Tensor) -> Tensor:
    """The images in float32, in memory of their own."""
    floats = to_float(images)
    return floats.clone() if floats.data_ptr() == images.data_ptr() else floats


def resample(images: Tensor, warp: Warp) -> Tensor:
    """The images as the warp shows them, antialiased where they shrink; a new tensor.

    Shape:
        images (B, C, H, W) uint8, uint16 or float -> (B, C, h, w) float32.
    """
    if warp.is_identity():
        return float_copy(images)
    return resample_upright(images, warp) if warp.upright else resample_freely(to_float(images), warp)


def resample_upright(images: Tensor, warp: Warp) -> Tensor:
    """Crops, flips and scalings: first along x, then along y, each a weighted sum of a few rows of the table of pixels.

    The weights are a triangle as wide as the pixels of the output, at least as those of the input, which is what
    torchvision and Pillow call antialiased bilinear interpolation.
    """
    if warp.fill:
        return resample_upright(to_float(images) - warp.fill, replace(warp, fill=0.0)).add_(warp.fill)
    scale = warp.matrix.diagonal(dim1=1, dim2=2)
    counts = [math.ceil(2 * reach) for reach in scale.abs().amax(0).clamp(min=1).tolist()]
    numbers = torch.cat([warp.matrix[:, :, 2], scale, warp.box], 1).to(images.device, non_blocking=True)  # (B, 8)
    full = FULL_SCALE.get(images.dtype, 1.0)
    for axis in (0, 1):
        index, weight = axis_weights(numbers[:, axis::2], warp.size[1 - axis], counts[axis], warp.fill is not None)
        weight, full = weight / full, 1.0
        columns = images.transpose(2, 3).to(torch.float32, memory_format=torch.contiguous_format)
        images = weighted_rows(columns.contiguous(), index, weight)  # (B, C, w, H), then (B, C, h, w)
    return images


def axis_weights(numbers: Tensor, size: int, count: int, padded: bool) -> tuple[Tensor, Tensor]:
    """Which input pixels make an output pixel along one axis, and with which weights.

    Shape:
        numbers (B, 4): move and scale from output to input, low and high end of what may be read
        -> pixel (B, size, count) int64, weight (B, size, count).
    """
    move, scale, low, high = numbers.view(-1, 4, 1, 1).unbind(1)
    centre = move + scale * (torch.arange(size, device=numbers.device).view(-1, 1) + 0.5)  # (B, size, 1)
    reach = scale.abs().clamp(min=1)
    inside = (torch.minimum(centre - low, high - centre) / reach + 0.5).clamp(0, 1) if padded else 1
    centre = torch.minimum(torch.maximum(centre, low), high)
    pixel = torch.ceil(centre - reach - 0.5) + torch.arange(count, device=numbers.device)  # (B, size, count)
    weight = (1 - (pixel + 0.5 - centre).abs() / reach).clamp_(min=0)
    weight = weight * ((pixel + 1 > low) & (pixel < high))
    pixel = torch.minimum(torch.maximum(pixel, low.floor()), high.ceil() - 1)
    return pixel.long(), weight * (inside / weight.sum(2, keepdim=True))


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


def resample_freely(images: Tensor, warp: Warp) -> Tensor:
    """Rotations, shears and bends: bilinear interpolation, averaged over n x n points a pixel where images shrink."""
    matrix, box, inner, bend = (
        tensor if tensor is None else tensor.to(images.device, non_blocking=True)
        for tensor in (warp.matrix, warp.box, warp.inner, warp.bend)
    )
    low, high = box[:, None, None, :2], box[:, None, None, 2:]  # (B, 1, 1, 2)
    y, x = (torch.arange(side, device=images.device) for side in warp.size)
    n = max(1, math.ceil(warp.shrink - 0.25))  # a triangle filter bears a quarter more than a pixel
    result = 0.0
    for step_y, step_x in product(range(n), repeat=2):
        points = torch.meshgrid(x + (step_x + 0.5) / n, y + (step_y + 0.5) / n, indexing="xy")
        position = apply_affine(matrix, torch.stack(points, 2)[None])  # (B, h, w, 2)
        if bend is not None:
            position = apply_affine(inner, position + bilinear_sample(bend, position).permute(0, 2, 3, 1))
        values = bilinear_sample(images, torch.minimum(torch.maximum(position, low + 0.5), high - 0.5))
        if warp.fill is not None:
            inside = (torch.minimum(position - low, high - position) + 0.5).clamp_(0, 1).prod(3)[:, None]
            values = warp.fill + inside * (values - warp.fill)
        result = result + values
    return result / n**2


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
