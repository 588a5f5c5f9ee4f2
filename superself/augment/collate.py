"""Collate functions for a plain ``DataLoader``: a list of (image, label, file name) becomes views, labels and file names.

For training loops that are built around such a loader, with the names and arguments of lightly's ``lightly.data.collate``. A
supervisor needs none of them: its ``augment=`` makes the same views from whole batches on the device, which is faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from superself.augment.colour import ColorJitter, RandomGrayscale
from superself.augment.filters import GaussianBlur
from superself.augment.geometry import (
    RandomAffine,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomVerticalFlip,
    height_and_width,
)
from superself.augment.intensity import Normalize
from superself.augment.per_image import as_tensor
from superself.augment.transform import Compose, Transform, Views
from superself.data.batch import Batch, Item, stack_targets
from superself.data.pixels import from_pil

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # of RGB images in [0, 1]
Collated = tuple[tuple[Tensor, ...], Any, list[Any]]


class BaseCollateFunction:
    """Two random views of each image: a list of (image, label, file name) -> ((view, view), labels, file names).

    Random numbers come from torch's global generator, which a ``DataLoader`` seeds differently in each worker and epoch. As
    ``collate_fn=`` of a supervisor it returns a Batch with these views, which the supervisor normalises itself.

    Args:
        transform: a transform of ``superself.augment``, which may make another number of views, such as
            ``recipe("byol", 64)``; or a function from one image, as the data set gives it, to a tensor (C, h, w), such as one of
            torchvision.
        normalize: (mean, std) with one value per channel, or a dictionary with these keys, for images in [0, 1]; None leaves
            views as the transform makes them.
    Shape:
        images (C, H, W) or (H, W), Pillow images or arrays (H, W[, C]), of different sizes -> views (B, C, h, w).
    Raises:
        TypeError: if ``transform`` cannot be called.
        ValueError: when called, if the views of the images differ in size.
    """

    def __init__(self, transform: Callable[..., Any], normalize: Any = None) -> None:
        if not callable(transform) or isinstance(transform, type):
            raise TypeError(f"transform={transform!r} is not a transform; pass one, or a function of one image.")
        if isinstance(transform, Transform) and not isinstance(transform, Views):
            transform = Views(transform, 2)
        self.transform = transform
        if isinstance(normalize, Mapping):
            normalize = normalize["mean"], normalize["std"]
        self.normalize = Normalize(*normalize) if normalize else None

    def __call__(self, items: Sequence[tuple[Any, ...]]) -> Collated | Batch:
        """The views of a list of (image, label, file name), or of the items of a supervisor's data set."""
        views = self.views([item[0] for item in items])
        if isinstance(items[0], Item):
            return Batch(views[0], views=views)  # the loader adds index and target
        if self.normalize is not None:
            channels = len(self.normalize.mean)  # grey images become RGB where these are numbers for RGB
            views = [
                self.normalize(view.expand(-1, channels, -1, -1) if view.shape[1] == 1 else view) for view in views
            ]
        names = [item[2] if len(item) > 2 else "" for item in items]
        return tuple(views), stack_targets([item[1] for item in items]), names

    def views(self, images: Sequence[Any]) -> list[Tensor]:
        """The views of images of any size, each (B, C, h, w), before normalisation."""
        if not isinstance(self.transform, Transform):
            return [_stacked([as_tensor(self.transform(image)) for image in images]) for _ in range(2)]
        tensors = _same_channels([_image_tensor(image) for image in images])
        if len({(image.shape, image.dtype) for image in tensors}) == 1:
            return self.transform(torch.stack(tensors))
        each = [self.transform(image[None]) for image in tensors]
        return [_stacked([view.squeeze(0) for view in column]) for column in zip(*each, strict=True)]


class ImageCollateFunction(BaseCollateFunction):
    """Crop, flips, rotation, colour jitter, greyscale and blur for each of two views of an image.

    Args:
        input_size: of the views, in pixels; one number or (height, width).
        cj_prob: probability of colour jitter.
        cj_bright: strength of the jitter of brightness.
        cj_contrast: of contrast.
        cj_sat: of saturation.
        cj_hue: of hue, at most 0.5.
        min_scale: smallest area of a crop, as a fraction of the image.
        random_gray_scale: probability of a grey view.
        gaussian_blur: probability of blur.
        kernel_size: blur as older versions of lightly had it, instead of ``sigmas``: the standard deviation is half of
            ``kernel_size`` times ``input_size``, give or take a fifth.
        sigmas: bounds of the standard deviation of the blur, in pixels.
        vf_prob: probability of a vertical flip.
        hf_prob: probability of a horizontal flip.
        rr_prob: probability of a rotation.
        rr_degrees: None for 90 degrees; bounds of the angle, counter-clockwise; or one number d for (-d, d).
        normalize: dictionary with "mean" and "std", or None; by default those of ImageNet.
    Shape:
        see BaseCollateFunction.
    """

    def __init__(
        self,
        input_size: int | tuple[int, int] = 64,
        cj_prob: float = 0.8,
        cj_bright: float = 0.7,
        cj_contrast: float = 0.7,
        cj_sat: float = 0.7,
        cj_hue: float = 0.2,
        min_scale: float = 0.15,
        random_gray_scale: float = 0.2,
        gaussian_blur: float = 0.5,
        kernel_size: float | None = None,
        sigmas: tuple[float, float] = (0.2, 2.0),
        vf_prob: float = 0.0,
        hf_prob: float = 0.5,
        rr_prob: float = 0.0,
        rr_degrees: float | tuple[float, float] | None = None,
        normalize: Mapping[str, Sequence[float]] | None = IMAGENET,
    ) -> None:
        size = height_and_width(input_size)
        if kernel_size is not None:
            sigmas = 0.4 * kernel_size * max(size), 0.6 * kernel_size * max(size)
        steps: list[Transform] = [RandomResizedCrop(size, (min_scale, 1.0))]
        steps += [RandomHorizontalFlip(hf_prob), RandomVerticalFlip(vf_prob)]
        if rr_prob:
            steps += [RandomAffine(_clockwise(rr_degrees), p=rr_prob)]
        steps += [ColorJitter(cj_bright, cj_contrast, cj_sat, cj_hue, p=cj_prob), RandomGrayscale(random_gray_scale)]
        if gaussian_blur:
            steps += [GaussianBlur(_kernel_for(max(sigmas), min(size)), tuple(sigmas), p=gaussian_blur)]
        super().__init__(Compose(steps), normalize)


class SimCLRCollateFunction(ImageCollateFunction):
    """Two views of each image as SimCLR makes them.

    Args:
        cj_strength: of the colour jitter: 0.8 of it for brightness, contrast and saturation, 0.2 for hue.
        input_size: see ImageCollateFunction, as for all others.
    Shape:
        see BaseCollateFunction.
    """

    def __init__(
        self,
        input_size: int | tuple[int, int] = 224,
        cj_prob: float = 0.8,
        cj_strength: float = 0.5,
        min_scale: float = 0.08,
        random_gray_scale: float = 0.2,
        gaussian_blur: float = 0.5,
        kernel_size: float | None = None,
        sigmas: tuple[float, float] = (0.2, 2.0),
        vf_prob: float = 0.0,
        hf_prob: float = 0.5,
        rr_prob: float = 0.0,
        rr_degrees: float | tuple[float, float] | None = None,
        normalize: Mapping[str, Sequence[float]] | None = IMAGENET,
    ) -> None:
        jitter = (0.8 * cj_strength,) * 3
        super().__init__(
            input_size, cj_prob, *jitter, 0.2 * cj_strength, min_scale, random_gray_scale, gaussian_blur, kernel_size, sigmas,
            vf_prob, hf_prob, rr_prob, rr_degrees, normalize,
        )  # fmt: skip


class MultiViewCollate:
    """Stacks views that the data set has made: a list of (views, label, file name) -> (views, labels, file names).

    Shape:
        views of an image, each (C, h, w), the same sizes for all images -> views, each (B, C, h, w).
    """

    def __call__(self, items: Sequence[tuple[Any, ...]]) -> tuple[list[Tensor], Any, list[Any]]:
        """The stacked views."""
        views = [_stacked(column) for column in zip(*(item[0] for item in items), strict=True)]
        return views, stack_targets([item[1] for item in items]), [item[2] if len(item) > 2 else "" for item in items]


def _image_tensor(image: Any) -> Tensor:
    """A tensor (C, H, W) from a tensor, an array or a Pillow image, whose transparent pixels are blended with white."""
    if isinstance(image, Tensor):
        return image if image.ndim == 3 else image[None]
    return as_tensor(np.array(from_pil(image)) if isinstance(image, Image.Image) else image)


def _same_channels(images: list[Tensor]) -> list[Tensor]:
    """The images, with grey ones as RGB where others of the batch are."""
    channels = max(len(image) for image in images)
    return [image.expand(3, -1, -1) if channels == 3 and len(image) == 1 else image for image in images]


def _stacked(views: Iterable[Tensor]) -> Tensor:
    views = list(views)
    if len({view.shape for view in views}) > 1:
        sizes = sorted({tuple(view.shape) for view in views})
        raise ValueError(
            f"the views of the images of a batch have different shapes ({', '.join(map(str, sizes[:3]))}), so they cannot be "
            "stacked; use a transform that crops or resizes to one size, such as RandomResizedCrop."
        )
    return torch.stack(views)


def _clockwise(degrees: float | tuple[float, float] | None) -> tuple[float, float]:
    """The bounds of a counter-clockwise rotation for RandomAffine, which turns clockwise."""
    low, high = (90, 90) if degrees is None else (-degrees, degrees) if isinstance(degrees, (int, float)) else degrees
    return -high, -low


def _kernel_for(sigma: float, side: int) -> int:
    """The odd size of a kernel that reaches three standard deviations, where the view is that large."""
    return 2 * min(math.ceil(3 * sigma), side - 1) + 1
