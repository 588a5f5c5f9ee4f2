"""Crops, flips, rotations, zooms and bends. Successive ones are composed and resample the images once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from superself.augment.transform import GeometricTransform, uniform_between
from superself.augment.warp import Warp, float_copy, scale_and_shift

ATTEMPTS = 10  # boxes that a random resized crop draws before it takes the central one, as in torchvision


def height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width from one number or two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class Resize(GeometricTransform):
    """The whole image at ``size`` (one number for a square, or height and width), antialiased."""

    def __init__(self, size: int | Sequence[int]) -> None:
        super().__init__()
        self.size = height_and_width(size)

    def warp(self, warp: Warp, numbers: Tensor) -> Warp:
        h, w = warp.size
        return warp.crop(torch.tensor([0.0, 0.0, w, h]).expand(len(numbers), 4), self.size)


class CenterCrop(GeometricTransform):
    """The middle of the image at ``size``.

    Args:
        size: height and width, or one number for a square.
        shrink: take as much of the image as the proportions of ``size`` allow, and shrink it; False cuts out ``size``
            pixels. Images that are smaller than ``size`` are enlarged either way.
    """

    def __init__(self, size: int | Sequence[int], shrink: bool = True) -> None:
        super().__init__()
        self.size, self.shrink = height_and_width(size), shrink

    def warp(self, warp: Warp, numbers: Tensor) -> Warp:
        h, w = warp.size
        scale = min(h / self.size[0], w / self.size[1])
        scale = scale if self.shrink else min(scale, 1.0)
        x, y = (w - scale * self.size[1]) / 2, (h - scale * self.size[0]) / 2
        x, y = (x, y) if scale != 1 else (round(x), round(y))  # whole pixels, which need no interpolation
        box = torch.tensor([x, y, x + scale * self.size[1], y + scale * self.size[0]])
        return warp.crop(box.expand(len(numbers), 4), self.size)


class RandomCrop(GeometricTransform):
    """A random piece of ``size`` pixels, not resized.

    Args:
        size: height and width, or one number for a square.
        padding: pixels that are added on all four sides first.
        fill: value of the padding.
        pad_larger: False pads only images that are not larger than ``size`` in both directions.
    Raises:
        ValueError: when called, if the padded image is smaller than ``size``.
    """

    def __init__(self, size: int | Sequence[int], padding: int = 0, fill: float = 0.0, pad_larger: bool = True) -> None:
        super().__init__(2)
        self.size, self.padding, self.fill, self.pad_larger = height_and_width(size), padding, fill, pad_larger

    def shows_outside(self) -> bool:
        return self.padding > 0

    def warp(self, warp: Warp, numbers: Tensor) -> Warp:
        is_larger = all(side > crop for side, crop in zip(warp.size, self.size, strict=True))
        padding = 0 if is_larger and not self.pad_larger else self.padding
        room = [side + 2 * padding - crop for side, crop in zip(warp.size, self.size, strict=True)]
        if min(room) < 0:
            raise ValueError(
                f"a crop of {self.size} does not fit into images of {warp.size} with padding={padding}; "
                "pass a smaller size or more padding."
            )
        top, left = ((numbers[:, i] * (room[i] + 1)).floor() - padding for i in (0, 1))
        box = torch.stack([left, top, left + self.size[1], top + self.size[0]], 1)
        if padding:
            warp = warp.with_fill(self.fill, torch.ones(len(numbers), dtype=torch.bool))
        return warp.crop(box, self.size)


class RandomResizedCrop(GeometricTransform):
    """A box of random area and aspect ratio at a random position, resized to ``size``; drawn as in torchvision.

    Args:
        size: height and width of the views.
        scale: bounds of the box's area as a fraction of the image's, uniform.
        ratio: bounds of width / height, uniform in its logarithm.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        super().__init__(2 * ATTEMPTS + 2)
        self.size, self.scale, self.ratio = height_and_width(size), scale, ratio

    def boxes(self, numbers: Tensor, height: int, width: int) -> Tensor:
        """Boxes (B, 4) left, top, right, bottom, in whole pixels, from numbers (B, draws)."""
        areas, ratios, place = numbers.split([ATTEMPTS, ATTEMPTS, 2], 1)
        areas = height * width * uniform_between(areas, *self.scale)
        ratios = torch.exp(uniform_between(ratios, *map(math.log, self.ratio)))
        w, h = torch.sqrt(areas * ratios).round(), torch.sqrt(areas / ratios).round()  # (B, attempts)
        w_central = min(width, round(height * self.ratio[1])) if width / height > self.ratio[0] else width
        h_central = min(height, round(width / self.ratio[0]))
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        first = fits.float().argmax(1, keepdim=True)
        any_fits = fits.any(1)
        w = torch.where(any_fits, w.gather(1, first).squeeze(1), w_central)
        h = torch.where(any_fits, h.gather(1, first).squeeze(1), h_central)
        left = torch.where(any_fits, (place[:, 0] * (width - w + 1)).floor(), (width - w).div(2).floor())
        top = torch.where(any_fits, (place[:, 1] * (height - h + 1)).floor(), (height - h).div(2).floor())
        return torch.stack([left, top, left + w, top + h], 1)

    def warp(self, warp: Warp, numbers: Tensor) -> Warp:
        return warp.crop(self.boxes(numbers, *warp.size), self.size)


class RandomHorizontalFlip(GeometricTransform):
    """Left and right exchanged with probability ``p``."""

    axis = 0  # the coordinate that is mirrored

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(0, p)

    def warp(self, warp: Warp, numbers: Tensor) -> Warp:
        flipped = self.selected(numbers)[0].float()
        scale, move = [torch.ones_like(flipped)] * 2, [torch.zeros_like(flipped)] * 2
        scale[self.axis], move[self.axis] = 1 - 2 * flipped, flipped * warp.size[1 - self.axis]
        return warp.then(scale_and_shift(*scale, *move))


class RandomVerticalFlip(RandomHorizontalFlip):
    """Top and bottom exchanged with probability ``p``."""

    axis = 1


class RandomRotation90(GeometricTransform):
    """One of the four rotations by multiples of 90 degrees, all equally likely, with probability ``p``; for square images."""

    def __init__(self, p: float = 1.0) -> None:
        super().__init__(1, p)

    def warp(self, warp: Warp, numbers: Tensor) -> Warp:
        h, w = warp.size
        if h != w:
            raise ValueError(f"rotations by 90 degrees need square images, got {h} x {w}; crop them to a square first.")
        chosen, numbers = self.selected(numbers)
        turns = torch.where(chosen, (4 * numbers[:, 0]).floor(), 0.0)
        cos, sin = (turns == 0).float() - (turns == 2).float(), (turns == 1).float() - (turns == 3).float()
        linear = torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)
        return warp.then(around_centre(warp.size, linear))


class RandomZoom(GeometricTransform):
    """The image enlarged or shrunk about its centre, keeping its size; what shrinks is padded.

    Args:
        scale: bounds of the zoom, uniform in its logarithm; below 1 the image shrinks.
        fill: value around shrunk images; None repeats their edge.
        p: probability for each sample.
    """

    def __init__(self, scale: tuple[float, float] = (0.5, 1.0), fill: float | None = 0.0, p: float = 1.0) -> None:
        super().__init__(1, p)
        self.scale, self.fill = scale, fill

    def shows_outside(self) -> bool:
        return self.scale[0] < 1

    def warp(self, warp: Warp, numbers: Tensor) -> Warp:
        chosen, numbers = self.selected(numbers)
        zoom = torch.exp(uniform_between(numbers[:, 0], *map(math.log, self.scale)))
        linear = torch.where(chosen, 1 / zoom, 1.0)[:, None, None] * torch.eye(2)
        warp = warp.with_fill(self.fill, chosen) if self.shows_outside() else warp
        return warp.then(around_centre(warp.size, linear))


class RandomAffine(GeometricTransform):
    """Rotation, shift, zoom and shear about the centre of the image, all at once; arguments as in torchvision.

    Args:
        degrees: bounds of the rotation; one number d stands for (-d, d).
        translate: largest shift, as a fraction of width and height.
        scale: bounds of the zoom; below 1 the image shrinks.
        shear: bounds in degrees, along x (a, b) or along x and y (a, b, c, d); one number d stands for (-d, d).
        fill: value of what comes in from outside; None repeats the edge.
        p: probability for each sample.
    """

    def __init__(
        self,
        degrees: float | tuple[float, float] = 0.0,
        translate: tuple[float, float] = (0.0, 0.0),
        scale: tuple[float, float] = (1.0, 1.0),
        shear: float | Sequence[float] = 0.0,
        fill: float | None = 0.0,
        p: float = 1.0,
    ) -> None:
        super().__init__(6, p)
        shear = symmetric_range(shear)
        self.degrees, self.translate, self.scale, self.fill = symmetric_range(degrees), translate, scale, fill
        self.shear = shear if len(shear) == 4 else (*shear, 0.0, 0.0)

    def shows_outside(self) -> bool:
        return True

    def warp(self, warp: Warp, numbers: Tensor) -> Warp:
        chosen, numbers = self.selected(numbers)
        h, w = warp.size
        angle, zoom = uniform_between(numbers[:, 0], *self.degrees), uniform_between(numbers[:, 1], *self.scale)
        shift = uniform_between(numbers[:, 2:4], -1, 1) * torch.tensor([self.translate[0] * w, self.translate[1] * h])
        shear = torch.stack(
            [uniform_between(numbers[:, 4], *self.shear[:2]), uniform_between(numbers[:, 5], *self.shear[2:])], 1
        )
        matrix = affine_matrix(warp.size, angle, shift.round(), zoom, shear)
        matrix = torch.where(chosen[:, None, None], matrix, torch.eye(2, 3))
        return warp.with_fill(self.fill, chosen).then(matrix)


class ElasticTransform(GeometricTransform):
    """A smooth random bend: normal displacements of a coarse grid of points, with a cubic spline between them.

    Args:
        points: points of the grid along each axis.
        sigma: standard deviation of their displacements, as a fraction of the image's shorter side.
        fill: value of what comes in from outside; None repeats the edge.
        p: probability for each sample.
        backend: "torch" computes the batch at once on its device, and resamples once together with crops and other
            geometric steps next to it. "elasticdeform" calls ``elasticdeform.deform_grid`` with the same displacements,
            image by image on the CPU; its views agree with the batched ones, except within half a pixel of a filled edge.
            It took 2.5 times as long on one core (11 ms for 3 x 224 x 224), and on a GPU it adds copies to the CPU and back.
    Raises:
        ValueError: if there are fewer than two points, or the backend is unknown.
        ImportError: if elasticdeform is asked for and missing.

    Source: Ronneberger et al., U-Net, arXiv:1505.04597.
    """

    has_bend = True

    def __init__(
        self,
        points: int = 3,
        sigma: float = 0.05,
        fill: float | None = None,
        p: float = 1.0,
        backend: str = "torch",
    ) -> None:
        super().__init__(2 * points * points, p)
        if points < 2:
            raise ValueError(f"points={points} cannot describe a bend; pass at least 2.")
        if backend not in ("torch", "elasticdeform"):
            raise ValueError(f'backend={backend!r} is unknown; pass "torch" or "elasticdeform".')
        if backend == "elasticdeform":
            import_elasticdeform()
        self.points, self.sigma, self.fill, self.backend = points, sigma, fill, backend

    def shows_outside(self) -> bool:
        return True

    def can_join(self, warp: Warp) -> bool:
        return self.backend == "torch" and super().can_join(warp)

    def displacements(self, numbers: Tensor, size: tuple[int, int]) -> Tensor:
        """Displacements of the grid (B, 2, P, P) in pixels, x before y, from numbers (B, 2 P P)."""
        normal = math.sqrt(2) * torch.erfinv(uniform_between(numbers, -1, 1).clamp(-0.999999, 0.999999))
        return (normal * self.sigma * min(size)).view(-1, 2, self.points, self.points)

    def warp(self, warp: Warp, numbers: Tensor) -> Warp:
        chosen, numbers = self.selected(numbers)
        grid = self.displacements(numbers, warp.size) * chosen.view(-1, 1, 1, 1)
        return warp.with_fill(self.fill, chosen).bend_by(dense_displacement(grid, warp.size), chosen)

    def prepare(self, images: Tensor, numbers: Tensor) -> Callable[[Tensor, slice], Tensor]:
        if self.backend == "torch":
            return super().prepare(images, numbers)
        return lambda chunk, part: self.run(float_copy(chunk), numbers[part])

    def run(self, images: Tensor, numbers: Tensor) -> Tensor:
        return (
            super().run(images, numbers) if self.backend == "torch" else self.for_selected(self.deform, images, numbers)
        )

    def deform(self, images: Tensor, numbers: Tensor) -> Tensor:
        """The images bent by elasticdeform, one by one."""
        grids = self.displacements(numbers, images.shape[2:]).numpy()
        bent = [deform_image(i, grid, self.fill) for i, grid in zip(images.cpu().numpy(), grids, strict=True)]
        return torch.from_numpy(np.stack(bent)).to(images)


def affine_matrix(size: tuple[int, int], angle: Tensor, shift: Tensor, zoom: Tensor, shear: Tensor) -> Tensor:
    """Maps from output to input coordinates, for the parameters of torchvision's ``affine``.

    Shape:
        angle and shear in degrees (B,), (B, 2); shift in pixels (B, 2); zoom (B,) -> (B, 2, 3).
    """
    angle, (shear_x, shear_y) = torch.deg2rad(angle), torch.deg2rad(shear).unbind(1)
    a, c = torch.cos(angle - shear_y) / torch.cos(shear_y), torch.sin(angle - shear_y) / torch.cos(shear_y)
    b, d = -a * torch.tan(shear_x) - torch.sin(angle), -c * torch.tan(shear_x) + torch.cos(angle)
    inverse = torch.stack([d, -b, -c, a], 1).view(-1, 2, 2) / zoom[:, None, None]  # [[a, b], [c, d]] has determinant 1
    return around_centre(size, inverse, shift)


def around_centre(size: tuple[int, int], linear: Tensor, shift: Tensor | float = 0.0) -> Tensor:
    """Maps (B, 2, 3) that apply ``linear`` (B, 2, 2) about the centre of the image, for an output moved by ``shift``."""
    centre = torch.tensor([size[1] / 2, size[0] / 2])
    moved = centre - (linear @ (centre + shift).expand(len(linear), 2)[:, :, None]).squeeze(2)
    return torch.cat([linear, moved[:, :, None]], 2)


def dense_displacement(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Displacements of all pixels from those of a coarse grid that spans the centres of the corner pixels.

    Shape:
        grid (B, 2, P, Q) in pixels, x before y -> (B, 2, h, w).
    """
    rows, columns = (spline_weights(points, side).to(grid) for points, side in zip(grid.shape[2:], size, strict=True))
    return rows @ grid @ columns.T


@cache
def spline_weights(points: int, size: int) -> Tensor:
    """Weights (size, points) of a cubic spline through equally spaced points, mirrored at its ends."""
    from scipy.ndimage import map_coordinates  # takes a while to import

    place = np.linspace(0, points - 1, size)
    unit = [map_coordinates(column, [place], order=3, mode="mirror") for column in np.eye(points)]
    return torch.tensor(np.stack(unit, 1), dtype=torch.float32)


def deform_image(image: np.ndarray, grid: np.ndarray, fill: float | None = 0.0) -> np.ndarray:
    """One image (C, H, W) bent by displacements (2, P, Q), x before y, with elasticdeform; None repeats the edge."""
    outside = {"mode": "nearest"} if fill is None else {"mode": "constant", "cval": fill}
    return import_elasticdeform().deform_grid(image, grid[::-1].copy(), order=1, axis=(1, 2), **outside)


def import_elasticdeform() -> ModuleType:
    """The package elasticdeform.

    Raises:
        ImportError: if it is missing.
    """
    try:
        import elasticdeform
    except ImportError as error:
        raise ImportError(
            'backend="elasticdeform" needs elasticdeform, which cannot be imported; run `pip install "superself[elastic]"`, '
            'or pass backend="torch".'
        ) from error
    return elasticdeform


def symmetric_range(bounds: float | Sequence[float]) -> tuple[float, ...]:
    """Bounds unchanged, or (-d, d) for one number d."""
    return (-bounds, bounds) if isinstance(bounds, (int, float)) else tuple(bounds)
