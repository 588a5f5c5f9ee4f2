"""Blur, noise, parts taken away, edges, and normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from superself.augment.resample import weighted_rows
from superself.augment.tone import bounds
from superself.augment.transform import Transform, to_device, uniform
from superself.basics.colour import greyscale


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """A Gaussian of ``sigma`` (B,) pixels, cut off at ``kernel_size`` pixels; images are mirrored at their edges."""
    half = kernel_size // 2
    if half >= min(images.shape[2:]):
        raise ValueError(
            f"kernel_size={kernel_size} reaches beyond images of {images.shape[2]} x {images.shape[3]}; "
            f"pass one below {2 * min(images.shape[2:])}, or None for a tenth of the image."
        )
    offsets = torch.arange(-half, half + 1, device=images.device)
    weight = torch.softmax(-0.5 * (offsets / to_device(sigma, images)[:, 0]) ** 2, 2)  # (B, 1, K)
    for _ in range(2):  # the rows of the image, then its columns
        height = images.shape[2]
        row = (torch.arange(height, device=images.device)[:, None] + offsets).abs()
        row = (height - 1) - (height - 1 - row).abs()  # mirrored at both ends
        images = weighted_rows(images, row.expand(len(images), -1, -1), weight.expand(-1, height, -1)).transpose(2, 3)
    return images.contiguous()


class GaussianBlur(Transform):
    """A Gaussian blur with a sigma of its own for every sample, uniform between the bounds, in pixels.

    Args:
        kernel_size: odd number of pixels; None takes a tenth of the image's shorter side.
        sigma: bounds, or one number for all.
        p: probability for each sample.
    """

    def __init__(
        self, kernel_size: int | None = None, sigma: float | tuple[float, float] = (0.1, 2.0), p: float = 1.0
    ) -> None:
        super().__init__(1, p)
        if kernel_size is not None and kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} has no middle; pass an odd number.")
        self.kernel_size, self.sigma = kernel_size, bounds(sigma)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        kernel_size = self.kernel_size or kernel_for(min(images.shape[2:]))
        return gaussian_blur(images, uniform(numbers[:, 0], *self.sigma), kernel_size)


def kernel_for(size: int) -> int:
    """The odd number of pixels next to a tenth of ``size``, at least 3: 23 for 224."""
    return max(3, int(size * 0.1) // 2 * 2 + 1)


def pixel_noise(numbers: Tensor, shape: Sequence[int], device: torch.device) -> Tensor:
    """Uniform random numbers for every pixel, a function of the sample's two numbers and the pixel's place alone.

    A mixing function for 32 bits (rounds of multiply and shift) of place and seed, so that a sample gets the same
    noise in whatever batch it is, on any device.

    Shape:
        numbers (B, 2) -> (B, *shape) in [0, 1).
    """
    seeds = (numbers.double() * 2**24).long().to(device, non_blocking=True).view(-1, 2, *[1] * len(shape))
    place = torch.arange(math.prod(shape), device=device).view(tuple(shape))
    bits = place + (seeds[:, 0] << 8)
    for seed in (seeds[:, 0], seeds[:, 1]):
        for factor in (0x7FEB352D, 0x846CA68B):
            bits = ((bits ^ (bits >> 16)) * factor) & 0xFFFFFFFF
        bits = (bits ^ (bits >> 16)) ^ seed
    bits = ((bits ^ (bits >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    return (bits >> 8).float() / 2**24


class GaussianNoise(Transform):
    """Normal noise with a standard deviation of its own for every sample, uniform between the bounds."""

    def __init__(self, sigma: float | tuple[float, float] = (0.0, 0.1), p: float = 1.0) -> None:
        super().__init__(5, p)
        self.sigma = bounds(sigma)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        radius, angle = (pixel_noise(n, images.shape[1:], images.device) for n in (numbers[:, :2], numbers[:, 2:4]))
        normal = torch.sqrt(-2 * torch.log(1 - radius)) * torch.cos(2 * math.pi * angle)  # Box and Muller
        return images.addcmul_(normal, to_device(uniform(numbers[:, 4], *self.sigma), images)).clamp_(0, 1)


class PixelMask(Transform):
    """Pixels, in all their channels, set to ``value``, each with a probability between the bounds ``ratio``."""

    def __init__(self, ratio: float | tuple[float, float] = 0.5, value: float = 0.0, p: float = 1.0) -> None:
        super().__init__(3, p)
        self.ratio, self.value = bounds(ratio), value

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        ratio = to_device(uniform(numbers[:, 2], *self.ratio), images)
        return images.masked_fill_(
            pixel_noise(numbers[:, :2], (1, *images.shape[2:]), images.device) < ratio, self.value
        )


def erase(images: Tensor, box: Tensor, value: float) -> Tensor:
    """The boxes (B, 4) left, top, right, bottom in whole pixels set to ``value``; overwrites the images."""
    left, top, right, bottom = (side.view(-1, 1) for side in box.to(images.device, non_blocking=True).unbind(1))
    x, y = (torch.arange(side, device=images.device) for side in (images.shape[3], images.shape[2]))
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], value)


class RandomErasing(Transform):
    """A box of random area, proportions and place set to ``value``; drawn as torchvision draws it, in one attempt.

    Args:
        scale: bounds of the box's area as a fraction of the image's, uniform.
        ratio: bounds of height / width, uniform in its logarithm.
        value: what the box is filled with.
        p: probability for each sample.

    Source: Zhong et al., Random Erasing, arXiv:1708.04896.
    Deviations: a box that does not fit is cut to the image's height or width, where torchvision draws another one.
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.02, 0.33),
        ratio: tuple[float, float] = (0.3, 3.3),
        value: float = 0.0,
        p: float = 0.5,
    ) -> None:
        super().__init__(4, p)
        self.scale, self.ratio, self.value = scale, ratio, value

    def boxes(self, numbers: Tensor, height: int, width: int) -> Tensor:
        """Boxes (B, 4) left, top, right, bottom in whole pixels, from numbers (B, 4)."""
        area = height * width * uniform(numbers[:, 0], *self.scale)
        ratio = torch.exp(uniform(numbers[:, 1], *map(math.log, self.ratio)))
        h, w = torch.sqrt(area * ratio).round().clamp(max=height), torch.sqrt(area / ratio).round().clamp(max=width)
        top, left = (numbers[:, 2] * (height - h + 1)).floor(), (numbers[:, 3] * (width - w + 1)).floor()
        return torch.stack([left, top, left + w, top + h], 1)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return erase(images, self.boxes(numbers, *images.shape[2:]), self.value)


class RandomBlocks(Transform):
    """``count`` square blocks at random places set to ``value``; they may overlap.

    Args:
        count: blocks in every sample.
        size: their side as a fraction of the image's shorter side.
        value: what they are filled with.
        p: probability for each sample.
    """

    def __init__(self, count: int = 5, size: float = 0.25, value: float = 0.0, p: float = 1.0) -> None:
        super().__init__(2 * count, p)
        self.size, self.value = size, value

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        side = max(1, round(self.size * min(images.shape[2:])))
        room = torch.tensor([images.shape[3] - side + 1, images.shape[2] - side + 1])
        for place in numbers.split(2, 1):
            corner = (place * room).floor()
            images = erase(images, torch.cat([corner, corner + side], 1), self.value)
        return images


class Sobel(Transform):
    """The two derivatives, along x and y, of the luma: two channels, edges repeated.

    Source: the preprocessing of Caron et al., DeepCluster, arXiv:1807.05520.
    """

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        x = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
        kernels = torch.stack([x, x.T])[:, None].to(images.device, non_blocking=True)
        return F.conv2d(F.pad(greyscale(images), (1, 1, 1, 1), mode="replicate"), kernels)


class Normalize(Transform):
    """(pixel - mean) / std, one value a channel; the last step."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if min(std) <= 0:
            raise ValueError(f"Normalize has std={tuple(std)}; pass numbers above 0.")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        if images.shape[1] != len(self.mean):
            raise ValueError(
                f"Normalize has {len(self.mean)} means for images of {images.shape[1]} channels; pass one for each."
            )
        return images.sub_(self.mean.to(images.device)).div_(self.std.to(images.device))
