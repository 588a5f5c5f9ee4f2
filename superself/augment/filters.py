"""Filters: Gaussian blur, Sobel derivatives and sharpness."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from superself.augment.transform import Transform, as_range, per_sample, uniform_between
from superself.augment.warp import weighted_rows
from superself.basics.colour import greyscale
from superself.basics.derivatives import sobel_derivatives


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Blur with a Gaussian of ``sigma`` (B,) pixels, truncated to ``kernel_size`` pixels; edges are mirrored.

    Shape:
        images (B, C, H, W), sigma (B,) -> (B, C, H, W).
    """
    half = kernel_size // 2
    if half >= min(images.shape[2:]):
        raise ValueError(
            f"kernel_size={kernel_size} is too large for images of {images.shape[2]} x {images.shape[3]}; "
            f"pass less than {2 * min(images.shape[2:])}, or None for a tenth of the image."
        )
    offsets = torch.arange(-half, half + 1, device=images.device)
    weight = torch.softmax(-0.5 * (offsets / per_sample(sigma, images)[:, 0]) ** 2, 2)  # (B, 1, K)
    for _ in range(2):  # the rows of the image, then its columns
        height = images.shape[2]
        row = (torch.arange(height, device=images.device)[:, None] + offsets).abs()
        row = (height - 1) - (height - 1 - row).abs()  # mirrored at both ends
        images = weighted_rows(images, row.expand(len(images), -1, -1), weight.expand(-1, height, -1)).transpose(2, 3)
    return images.contiguous()


class GaussianBlur(Transform):
    """Gaussian blur with sigma drawn uniformly for each sample.

    Args:
        kernel_size: odd number of pixels; None takes a tenth of the image's shorter side.
        sigma: bounds in pixels, or one number for all samples.
        p: probability for each sample.
    """

    def __init__(
        self, kernel_size: int | None = None, sigma: float | tuple[float, float] = (0.1, 2.0), p: float = 1.0
    ) -> None:
        super().__init__(1, p)
        if kernel_size is not None and kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} is even, so it has no central pixel; pass an odd number.")
        self.kernel_size, self.sigma = kernel_size, as_range(sigma)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        kernel_size = self.kernel_size or blur_kernel_size(min(images.shape[2:]))
        return gaussian_blur(images, uniform_between(numbers[:, 0], *self.sigma), kernel_size)


def blur_kernel_size(size: int) -> int:
    """The odd number closest to a tenth of ``size`` pixels, at least 3: 23 for 224."""
    return max(3, int(size * 0.1) // 2 * 2 + 1)


class Sobel(Transform):
    """The derivatives of the luma along x and y as two channels; the image's edge is repeated.

    Source: the preprocessing of Caron et al., DeepCluster, arXiv:1807.05520.
    """

    def out_channels(self, channels: int) -> int:
        return 2

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return sobel_derivatives(greyscale(images))


class RandomSobel(Transform):
    """The mean of the Sobel derivatives along x and y, stretched to [0, 1], in all channels; with probability ``p``.

    Derivatives are those of the mean of the channels. An image without edges becomes 0.
    """

    def __init__(self, p: float = 0.1) -> None:
        super().__init__(0, p)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        edges = sobel_derivatives(images.mean(1, keepdim=True)).mean(1, keepdim=True)
        low, high = edges.amin((2, 3), keepdim=True), edges.amax((2, 3), keepdim=True)
        return ((edges - low) / (high - low + 1e-7)).expand_as(images).contiguous()


def adjust_sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Images mixed with a blurred copy: 0 gives the blurred image, 1 the original, 2 is sharper; border pixels are kept.

    The blur is Pillow's: 3 x 3 pixels, the central one with weight 5/13, the others with 1/13.
    """
    if min(images.shape[-2:]) < 3:  # nothing but border
        return images.clone()
    inner = images[:, :, 1:-1, 1:-1]
    blurred = (9 * F.avg_pool2d(images, 3, 1) + 4 * inner) / 13
    result = images.clone()
    result[:, :, 1:-1, 1:-1] = torch.lerp(blurred, inner, per_sample(factor, images)).clamp_(0, 1)
    return result


class RandomAdjustSharpness(Transform):
    """Sharpness changed by a factor: 0 blurs, 1 changes nothing, 2 sharpens.

    Args:
        factor: bounds, or one number for all samples.
        p: probability for each sample.
    """

    def __init__(self, factor: float | tuple[float, float] = 2.0, p: float = 0.5) -> None:
        super().__init__(1, p)
        self.factor = as_range(factor)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return adjust_sharpness(images, uniform_between(numbers[:, 0], *self.factor))
