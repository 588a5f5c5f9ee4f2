"""Pixels, boxes and blocks of an image set to a constant."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from superself.augment.noise import pixel_noise
from superself.augment.transform import Transform, as_range, per_sample, uniform_between


class PixelMask(Transform):
    """Random pixels, in all channels, set to a constant.

    Args:
        ratio: probability of each pixel to be masked; bounds to draw it from, or one number for all samples.
        value: of masked pixels.
        p: probability for each sample.
    """

    def __init__(self, ratio: float | tuple[float, float] = 0.5, value: float = 0.0, p: float = 1.0) -> None:
        super().__init__(3, p)
        self.ratio, self.value = as_range(ratio), value

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        ratio = per_sample(uniform_between(numbers[:, 2], *self.ratio), images)
        return images.masked_fill_(
            pixel_noise(numbers[:, :2], (1, *images.shape[2:]), images.device) < ratio, self.value
        )


def erase(images: Tensor, box: Tensor, value: float) -> Tensor:
    """Sets the boxes (B, 4) left, top, right, bottom, in whole pixels, to ``value``; overwrites the images."""
    left, top, right, bottom = (side.view(-1, 1) for side in box.to(images.device, non_blocking=True).unbind(1))
    x, y = (torch.arange(side, device=images.device) for side in (images.shape[3], images.shape[2]))
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], value)


class RandomErasing(Transform):
    """A box of random area, aspect ratio and position set to a constant; drawn as in torchvision, in one attempt.

    Args:
        scale: bounds of the box's area as a fraction of the image's, uniform.
        ratio: bounds of height / width, uniform in its logarithm.
        value: of the pixels in the box.
        p: probability for each sample.

    Source: Zhong et al., Random Erasing, arXiv:1708.04896.
    Deviations: a box that does not fit is cut to the image's height or width; torchvision draws another one.
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
        area = height * width * uniform_between(numbers[:, 0], *self.scale)
        ratio = torch.exp(uniform_between(numbers[:, 1], *map(math.log, self.ratio)))
        h, w = torch.sqrt(area * ratio).round().clamp(max=height), torch.sqrt(area / ratio).round().clamp(max=width)
        top, left = (numbers[:, 2] * (height - h + 1)).floor(), (numbers[:, 3] * (width - w + 1)).floor()
        return torch.stack([left, top, left + w, top + h], 1)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return erase(images, self.boxes(numbers, *images.shape[2:]), self.value)


class RandomBlocks(Transform):
    """Square blocks at random positions set to a constant; they may overlap.

    Args:
        count: blocks per image.
        size: their side as a fraction of the image's shorter side.
        value: of the pixels in the blocks.
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
