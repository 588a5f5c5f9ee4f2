"""Gaussian noise, and random numbers for every pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from superself.augment.transform import Transform, as_range, per_sample, uniform_between


def pixel_noise(numbers: Tensor, shape: Sequence[int], device: torch.device) -> Tensor:
    """Uniform random numbers for every pixel, from nothing but the sample's two numbers and the pixel's position.

    A 32-bit hash (rounds of multiplication and shift) of position and seed, so that a sample gets the same noise in any
    batch and on any device.

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
    """Normal noise, with the standard deviation drawn uniformly for each sample; the result is clipped to [0, 1].

    Args:
        sigma: bounds of the standard deviation, or one number for all samples.
        p: probability for each sample.
    """

    def __init__(self, sigma: float | tuple[float, float] = (0.0, 0.1), p: float = 1.0) -> None:
        super().__init__(5, p)
        self.sigma = as_range(sigma)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        radius, angle = (pixel_noise(n, images.shape[1:], images.device) for n in (numbers[:, :2], numbers[:, 2:4]))
        normal = torch.sqrt(-2 * torch.log(1 - radius)) * torch.cos(2 * math.pi * angle)  # Box and Muller
        return images.addcmul_(normal, per_sample(uniform_between(numbers[:, 4], *self.sigma), images)).clamp_(0, 1)
