"""The recipe "patchwork": an augmentation written as a dictionary of numbers, with the names of the library patchwork.

The names of both of its documents are known (``max_brightness_delta`` and ``brightness_delta``) and make the same transform.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from superself.augment.colour import ColorJitter
from superself.augment.filters import GaussianBlur, RandomSobel, blur_kernel_size
from superself.augment.geometry import (
    RandomAffine,
    RandomHorizontalFlip,
    RandomRotation90,
    RandomVerticalFlip,
    RandomZoom,
    Resize,
    height_and_width,
)
from superself.augment.intensity import RandomAutocontrast, RandomEqualize, RandomSolarize
from superself.augment.jpeg import JPEG
from superself.augment.masking import PixelMask, RandomErasing
from superself.augment.noise import GaussianNoise
from superself.augment.transform import Compose, GeometricTransform, Transform
from superself.augment.warp import Warp
from superself.basics.validate import require_fraction, require_nonnegative

OTHER_NAMES = {
    "left_right_flip": "flip_left_right",
    "up_down_flip": "flip_up_down",
    "max_brightness_delta": "brightness_delta",
    "max_saturation_delta": "saturation_delta",
    "max_hue_delta": "hue_delta",
    "jpeg": "jpeg_degrade",
}
DEFAULTS = {  # of patchwork's documents of the present names
    "flip_left_right": True, "flip_up_down": True, "rot90": True, "zoom_scale": 0.2, "brightness_delta": 0.2,
    "contrast_delta": 0.1, "saturation_delta": 0.1, "hue_delta": 0.05, "gaussian_blur": 0.2, "gaussian_noise": 0.2,
    "drop_color": 0.2, "sobel_prob": 0.1, "mask": 0.2,
}  # fmt: skip
CONTRAST = (0.4, 1.4)  # contrast_min and contrast_max where only one is given
# What each name makes, in the order of the steps: f(value, size of the views, probability of the step). A value that is a
# probability is that of its own step; flips come for half of the samples.
STEPS: dict[str, Callable[[Any, tuple[int, int], float], Transform]] = {
    "flip_left_right": lambda on, size, p: RandomHorizontalFlip(),
    "flip_up_down": lambda on, size, p: RandomVerticalFlip(),
    "rot90": lambda on, size, p: RandomRotation90(p),
    "shear": lambda most, size, p: RandomAffine(shear=sheared(most), fill=None, p=p),
    "zoom_scale": lambda scale, size, p: RandomPadAndCrop(scale, p=p),
    "center_zoom_scale": lambda scale, size, p: RandomZoom((1.0, 1 / scale), p=p),
    "solarize": lambda prob, size, p: RandomSolarize((0.0, 1.0), prob),
    "jitter": lambda strength, size, p: ColorJitter(*[0.8 * strength] * 3, hue=min(0.5, 0.2 * strength), p=p),
    "brightness_delta": lambda delta, size, p: ColorJitter(brightness=delta, p=p),
    "contrast": lambda bounds, size, p: ColorJitter(contrast=bounds, p=p),
    "saturation_delta": lambda delta, size, p: ColorJitter(saturation=delta, p=p),
    "hue_delta": lambda delta, size, p: ColorJitter(hue=delta, p=p),
    "gaussian_blur": lambda prob, size, p: GaussianBlur(blur_kernel_size(min(size)), (0.1, 2.0), prob),
    "gaussian_noise": lambda prob, size, p: GaussianNoise(0.1, prob),
    "autocontrast": lambda prob, size, p: RandomAutocontrast(prob),
    "equalize": lambda prob, size, p: RandomEqualize(prob),
    "drop_color": lambda prob, size, p: RandomChannelMean(prob),
    "sobel_prob": lambda prob, size, p: RandomSobel(prob),
    "jpeg_degrade": lambda prob, size, p: JPEG((3, 5), prob),
    "mask": lambda prob, size, p: RandomErasing((1 / 400, 1 / 4), (0.1, 10.0), value=0.5, p=prob),
    "pixel_mask": lambda prob, size, p: PixelMask(0.7, p=prob),
}
PROBABILITIES = {
    "solarize", "gaussian_blur", "gaussian_noise", "autocontrast", "equalize", "drop_color", "sobel_prob",
    "jpeg_degrade", "mask", "pixel_mask",
}  # fmt: skip
NAMES = [
    *(name for name in STEPS if name != "contrast"),
    "contrast_delta",
    "contrast_min",
    "contrast_max",
    "select_prob",
]


def numbered_view(size: int | Sequence[int], **parameters: Any) -> Compose:
    """One view from a dictionary of patchwork: the steps that are given, in the order of ``STEPS``, and no others.

    Without parameters: ``DEFAULTS``, of which rot90 is left out for views that are not square. A step that is False, None or 0
    is off. The whole image is resized to ``size`` first.

    Args:
        size: of the views.
        **parameters: by any of patchwork's names:
            flip_left_right, flip_up_down (left_right_flip, up_down_flip): True for flips of half of the samples.
            rot90: True for one of the four rotations; for square views.
            shear: largest shear along both axes, as a fraction of the image; the edge is repeated.
            zoom_scale: up to this fraction of the image is added to each side, then up to this fraction cut from each.
            center_zoom_scale: the middle, with sides of this fraction of the image's at least.
            jitter: strength of SimCLR's colour jitter, in an order drawn for each sample.
            brightness_delta, saturation_delta (max_brightness_delta, ...): factors differ from 1 by up to this.
            contrast_delta, or contrast_min and contrast_max: the same, or bounds of the factor.
            hue_delta (max_hue_delta): largest turn, as a fraction of the colour circle.
            gaussian_blur, gaussian_noise, autocontrast, equalize, drop_color, sobel_prob, solarize, jpeg_degrade (jpeg),
            mask, pixel_mask: probability of the step.
            select_prob: probability of the other steps, apart from flips; 1 unless it is given.
    Raises:
        ValueError: if a name is unknown, with the nearest, a number is out of range, or rot90 is given for views that are
            not square.

    Source: the documents of github.com/jg10545/patchwork; sizes of noise, blur and masks of its code.
    Deviations: brightness is a factor under both names, where max_brightness_delta was once added; contrast is about the mean
        luma; padding is uniform, and cropping takes the place of its later random resized crop; a mask has uniform area; JPEG has
        quality 3 to 5; blur kernels are a tenth of the view; equalize is added.
    """
    given = in_present_names(parameters) if parameters else dict(DEFAULTS)
    height, width = height_and_width(size)
    p = given.pop("select_prob", 1.0)
    require_fraction("select_prob", p, "is the probability of a step")
    low, high, delta = (given.pop(name, None) for name in ("contrast_min", "contrast_max", "contrast_delta"))
    if any(bound is not None and bound is not False for bound in (low, high)):
        given["contrast"] = _contrast_bounds(low, high)
    elif delta:
        given["contrast"] = (max(0.0, 1 - delta), 1 + delta)
    if height != width and given.get("rot90"):
        if parameters:
            raise ValueError(f"rot90 needs square views, and these have {height} x {width} pixels; leave it out.")
        del given["rot90"]
    steps = [make(given[name], (height, width), p) for name, make in STEPS.items() if given.get(name)]
    return Compose([Resize(size), *steps])


def _contrast_bounds(low: Any, high: Any) -> tuple[float, float]:
    """contrast_min and contrast_max; the default where one is not a number, but None, False or True."""
    low, high = (
        default if bound is None or isinstance(bound, bool) else bound
        for bound, default in zip((low, high), CONTRAST, strict=True)
    )
    if low > high:
        raise ValueError(f"contrast_min={low} is larger than contrast_max={high}; pass them the other way round.")
    return low, high


def in_present_names(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters by the present names; raises a ValueError where a name is unknown or comes twice, or for a wrong value."""
    found: dict[str, Any] = {}
    for name, value in parameters.items():
        present = OTHER_NAMES.get(name, name)
        if present not in NAMES:
            near = difflib.get_close_matches(str(name), [*NAMES, *OTHER_NAMES], 1, 0.5)
            hint = f"did you mean {near[0]!r}? The names are" if near else "the names are"
            raise ValueError(f"{name!r} is not a parameter of the augmentation; {hint} {', '.join(NAMES)}.")
        if present in found:
            first = next(other for other in parameters if OTHER_NAMES.get(other, other) == present)
            raise ValueError(f"{first!r} and {name!r} are two names of the same parameter; pass one of them.")
        if present in PROBABILITIES:
            require_fraction(
                name, float(value or 0) if isinstance(value, (bool, type(None))) else value, "is a probability"
            )
        elif present == "center_zoom_scale" and not isinstance(value, (bool, type(None))):
            require_fraction(
                name, value, "is the smallest side of the middle as a fraction of the image's", lower_open=True
            )
        elif not isinstance(value, (bool, type(None))):
            require_nonnegative(name, value, "is the strength of a step")
        found[present] = value
    return found


def is_dictionary_of_patchwork(parameters: dict[str, Any]) -> bool:
    """Whether one of the names is a parameter, or nearly one."""
    known = [*NAMES, *OTHER_NAMES]
    return any(difflib.get_close_matches(str(name), known, 1, 0.7) for name in parameters)


def sheared(most: float) -> tuple[float, float, float, float]:
    """Bounds in degrees of a shear along both axes by up to a fraction of the image."""
    angle = math.degrees(math.atan(most))
    return (-angle, angle, -angle, angle)


class RandomPadAndCrop(GeometricTransform):
    """A random border on each side, then a random crop from each side, resized to the size that the image had.

    Args:
        scale: both are uniform from 0 to this fraction of height and width, each of the image they start from; below 0.5.
        fill: value of the border.
        p: probability for each sample.
    """

    def __init__(self, scale: float = 0.3, fill: float = 0.0, p: float = 1.0) -> None:
        super().__init__(8, p)
        if not 0 <= scale < 0.5:
            raise ValueError(f"scale={scale} can crop everything; pass a number from 0 to below 0.5 (zoom_scale).")
        self.scale, self.fill = scale, fill

    def shows_outside(self) -> bool:
        return True

    def warp(self, warp: Warp, numbers: Tensor) -> Warp:
        chosen, numbers = self.selected(numbers)
        pad, cut = (self.scale * numbers).view(-1, 2, 2, 2).unbind(1)  # (B, 2, 2): low and high side, along x and y
        sides = torch.tensor([warp.size[1], warp.size[0]])
        padded = 1 + pad.sum(1, keepdim=True)  # (B, 1, 2)
        low, high = (-pad[:, :1] + cut[:, :1] * padded), (1 + pad[:, 1:] - cut[:, 1:] * padded)
        box = torch.cat([low, high], 1) * sides  # (B, 2, 2)
        whole = torch.stack([torch.zeros(2), sides.float()])
        box = torch.where(chosen[:, None, None], box, whole).flatten(1)
        return warp.with_fill(self.fill, chosen).crop(box, warp.size)


class RandomChannelMean(Transform):
    """All channels replaced by their mean, with probability ``p``; for any number of channels."""

    def __init__(self, p: float = 0.1) -> None:
        super().__init__(0, p)

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return images.mean(1, keepdim=True).expand_as(images).contiguous()
