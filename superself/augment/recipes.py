"""Augmentations by name, with the numbers of the papers, adapted to the size of the images.

Adapted: images of up to 32 pixels are not blurred unless asked for; blur kernels are a tenth of the view (23 pixels for
224, as in the papers); small views keep their proportion to large ones. Flips come right after the crop, where they
cost nothing; later steps give the same distribution either way. Crops are bilinear and antialiased, and are cut from the
whole stored image, which may be larger than the views.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from superself.augment.colour import ColorJitter, RandomGrayscale
from superself.augment.filters import GaussianBlur, RandomAdjustSharpness, blur_kernel_size
from superself.augment.geometry import (
    CenterCrop,
    ElasticTransform,
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    height_and_width,
)
from superself.augment.intensity import (
    Normalize,
    RandomAutocontrast,
    RandomEqualize,
    RandomInvert,
    RandomPosterize,
    RandomSolarize,
)
from superself.augment.masking import RandomBlocks
from superself.augment.patchwork import is_dictionary_of_patchwork, numbered_view
from superself.augment.transform import Compose, Lambda, MultiCrop, RandomChoice, Transform, Views
from superself.basics.validate import require_callable

Size = int | Sequence[int]
SMALL = 32  # pixels; up to this size, images are not blurred and SimCLR's colours are half as strong


def is_small(size: Size) -> bool:
    """Whether images of this size are left unblurred, as those of CIFAR-10 are."""
    return min(height_and_width(size)) <= SMALL


def optional_blur(size: Size, p: float, blur: bool) -> list[Transform]:
    """Gaussian blur with sigma from 0.1 to 2 pixels and the kernel for views of ``size``, or nothing."""
    return [GaussianBlur(blur_kernel_size(min(height_and_width(size))), (0.1, 2.0), p=p)] if blur else []


def wants_blur(size: Size, blur: bool | None) -> bool:
    """``blur`` itself, or if it is None, whether images of ``size`` are large enough; decides for small views too."""
    return not is_small(size) if blur is None else blur


def crop_and_flip(size: Size, scale: tuple[float, float] = (0.08, 1.0)) -> list[Transform]:
    """A random crop of a fraction ``scale`` of the area, and a flip of half of the samples."""
    return [RandomResizedCrop(size, scale), RandomHorizontalFlip()]


def color_distortion(strength: float) -> list[Transform]:
    """SimCLR's colour distortion: jitter of four fifths of the samples, then greyscale for one fifth."""
    jitter = ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength, p=0.8)
    return [jitter, RandomGrayscale(0.2)]


def simclr(size: Size, strength: float | None = None, blur: bool | None = None) -> Compose:
    """One view of SimCLR: crop, flip, colour distortion, blur for half of the samples.

    Args:
        size: of the views.
        strength: of the colour distortion; None takes 1, and 0.5 up to 32 pixels, as the paper does for CIFAR-10.
        blur: None blurs above 32 pixels, as the paper does.

    Source: Chen et al., SimCLR, arXiv:2002.05709, appendix on data augmentation.
    """
    strength = (0.5 if is_small(size) else 1.0) if strength is None else strength
    blurred = optional_blur(size, 0.5, wants_blur(size, blur))
    return Compose([*crop_and_flip(size), *color_distortion(strength), *blurred])


def moco_v1(size: Size) -> Compose:
    """One view of MoCo's first version, which is that of instance discrimination.

    Source: He et al., MoCo, arXiv:1911.05722; numbers of the authors' code.
    """
    return Compose([*crop_and_flip(size, (0.2, 1.0)), RandomGrayscale(0.2), ColorJitter(0.4, 0.4, 0.4, 0.4)])


def moco_v2(size: Size, blur: bool | None = None) -> Compose:
    """One view of MoCo v2: weaker hue than v1, jitter for four fifths, and blur.

    Source: Chen et al., MoCo v2, arXiv:2003.04297; numbers of the authors' code.
    """
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8)
    blurred = optional_blur(size, 0.5, wants_blur(size, blur))
    return Compose([*crop_and_flip(size, (0.2, 1.0)), jitter, RandomGrayscale(0.2), *blurred])


def byol(size: Size, blur: bool | None = None) -> Views:
    """The two views of BYOL: the first always blurred, the second rarely blurred and sometimes solarized.

    Source: Grill et al., BYOL, arXiv:2006.07733, table of image augmentation parameters.
    """
    blur = wants_blur(size, blur)
    common = [*crop_and_flip(size), ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8), RandomGrayscale(0.2)]
    first = Compose([*common, *optional_blur(size, 1.0, blur)])
    return Views([first, Compose([*common, *optional_blur(size, 0.1, blur), RandomSolarize(0.5, p=0.2)])])


def dino(size: Size, small_count: int = 8, blur: bool | None = None) -> MultiCrop:
    """DINO's multi-crop: two large views, distorted as in BYOL, and small ones of 96/224 of their size.

    Args:
        size: of the large views; it also decides about the blur of the small ones.
        small_count: how many small views.
        blur: None blurs above 32 pixels.

    Source: Caron et al., DINO, arXiv:2104.14294; numbers of the authors' code.
    Deviations: bilinear crops, where the authors' are bicubic.
    """
    blur, small = wants_blur(size, blur), small_size(size)
    colour = [ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8), RandomGrayscale(0.2)]
    large = [*crop_and_flip(size, (0.4, 1.0)), *colour]
    first = Compose([*large, *optional_blur(size, 1.0, blur)])
    second = Compose([*large, *optional_blur(size, 0.1, blur), RandomSolarize(0.5, p=0.2)])
    third = Compose([*crop_and_flip(small, (0.05, 0.4)), *colour, *optional_blur(small, 0.5, blur)])
    return MultiCrop([first, second], third, small_count)


def swav(size: Size, small_count: int = 6, blur: bool | None = None) -> MultiCrop:
    """SwAV's multi-crop: two large views and small ones of 96/224 of their size, all distorted as in SimCLR.

    Args:
        size: of the large views; it also decides about the blur of the small ones.
        small_count: how many small views.
        blur: None blurs above 32 pixels.

    Source: Caron et al., SwAV, arXiv:2006.09882; scales of crops and blur of the authors' code.
    """
    blurred = wants_blur(size, blur)

    def view(size: Size, scale: tuple[float, float]) -> Compose:
        return Compose([*crop_and_flip(size, scale), *color_distortion(1.0), *optional_blur(size, 0.5, blurred)])

    return MultiCrop([view(size, (0.14, 1.0))] * 2, view(small_size(size), (0.05, 0.14)), small_count)


def small_size(size: Size) -> tuple[int, int]:
    """Height and width of the small views that go with large ones of ``size``."""
    height, width = height_and_width(size)
    return max(1, round(height * 96 / 224)), max(1, round(width * 96 / 224))


def pirl(size: Size, scale: tuple[float, float] = (0.08, 1.0)) -> Compose:
    """One view of PIRL; the image that is cut into tiles has ``scale=(0.6, 1.0)``.

    Source: Misra & van der Maaten, PIRL, arXiv:1912.01991; numbers of the authors' configuration in VISSL, where two
    thirds of the samples get one of the four changes of intensity.
    """
    intensity = [
        RandomAutocontrast(1.0),
        RandomPosterize((4, 8), p=1.0),
        RandomAdjustSharpness((0.1, 1.9), p=1.0),
        RandomSolarize((0.0, 1.0), p=1.0),
    ]
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.2)
    return Compose([*crop_and_flip(size, scale), jitter, RandomChoice(intensity, p=0.66), RandomGrayscale(0.2)])


def cpc(size: Size) -> Compose:
    """CPC v2's augmentation of a patch: three operations from a pool, an elastic deformation, greyscale.

    The pool and its ranges are AutoAugment's (arXiv:1805.09501), without the mixing of two images.

    Source: Hénaff et al., CPC v2, arXiv:1905.09272, appendix on image preprocessing.
    Deviations: three operations, drawn with replacement, where the paper has two; its change of the colour histogram is
        left out.
    """
    shear, grey = math.degrees(math.atan(0.3)), 0.5  # AutoAugment shears by up to 0.3 and fills with grey
    pool = [
        RandomAffine(shear=(-shear, shear), fill=grey),
        RandomAffine(shear=(0.0, 0.0, -shear, shear), fill=grey),
        RandomAffine(translate=(0.45, 0.0), fill=grey),
        RandomAffine(translate=(0.0, 0.45), fill=grey),
        RandomAffine(degrees=30, fill=grey),
        RandomAutocontrast(1.0),
        RandomInvert(1.0),
        RandomEqualize(1.0),
        RandomSolarize((0.0, 1.0), p=1.0),
        RandomPosterize((4, 8), p=1.0),
        ColorJitter(contrast=(0.1, 1.9)),
        ColorJitter(saturation=(0.1, 1.9)),
        ColorJitter(brightness=(0.1, 1.9)),
        RandomAdjustSharpness((0.1, 1.9), p=1.0),
        RandomBlocks(1, size=0.18, value=grey),
    ]
    bend = [ElasticTransform(p=0.2), RandomAffine(shear=(-shear, shear), fill=None, p=0.2)]
    return Compose([Resize(size), RandomHorizontalFlip(), RandomChoice(pool, count=3), *bend, RandomGrayscale(0.25)])


def exemplar(size: Size) -> Compose:
    """The strong distortions of Exemplar-CNN, of the whole image: moved, turned, scaled, sheared, bent, recoloured.

    Source: Dosovitskiy et al., Exemplar-CNN, arXiv:1406.6909; shift, scale, rotation and hue are from memory, not
        checked against the paper.
    Deviations: flips, shear, bends and greyscale are added; jitter replaces changes along principal components.
    """
    move = RandomAffine(degrees=20, translate=(0.2, 0.2), scale=(0.7, 1.4), shear=(-15, 15, -15, 15), fill=None)
    bend = ElasticTransform(sigma=0.05, p=0.5)
    colour = ColorJitter(0.6, 0.6, 0.6, 0.1)
    return Compose([Resize(size), RandomHorizontalFlip(), bend, move, colour, RandomGrayscale(0.2)])


def iic(size: Size, scale: tuple[float, float] = (0.4, 1.0)) -> Views:
    """The two views of IIC: a square crop, and another one that is flipped for half of the samples and has other colours.

    Args:
        size: of the views.
        scale: bounds of the crop's fraction of the area; 0.39 for both is 20 of 32 pixels, as the authors have for CIFAR-10.

    Source: Ji et al., IIC, arXiv:1807.06653; numbers of the authors' code.
    """
    crop = RandomResizedCrop(size, scale, ratio=(1.0, 1.0))
    return Views([crop, Compose([crop, RandomHorizontalFlip(), ColorJitter(0.4, 0.4, 0.4, 0.125)])])


def crop_flip(size: Size) -> Compose:
    """The usual augmentation of CIFAR: a random crop from the image with 1/8 of its side as black padding, and a flip.

    Images that are stored larger than ``size`` have room for random crops and are not padded, as is usual for ImageNet.
    Nothing is resized, so images must not be smaller than ``size``.

    Source: the authors' loader of Gidaris et al., RotNet, arXiv:1803.07728 (32 pixels, padding of 4).
    """
    padding = round(min(height_and_width(size)) / 8)
    return Compose([RandomCrop(size, padding, pad_larger=False), RandomHorizontalFlip()])


def resized_crop_flip(size: Size) -> Compose:
    """A random crop of 0.2 to 1 of the area, resized, and a flip; no padding and no change of colours."""
    return Compose(crop_and_flip(size, (0.2, 1.0)))


def plain(size: Size) -> Compose:
    """No augmentation: the middle of the image.

    Of an image stored larger, ``size`` pixels are cut out without resizing, as evaluation on ImageNet cuts 224 pixels out
    of 256; an image of that size is unchanged, and a smaller one is enlarged.
    """
    return Compose([CenterCrop(size, shrink=False)])


RECIPES: dict[str, Callable[..., Transform]] = {
    "simclr": simclr,
    "moco-v1": moco_v1,
    "moco-v2": moco_v2,
    "byol": byol,
    "cpc": cpc,
    "pirl": pirl,
    "swav": swav,
    "dino": dino,
    "exemplar": exemplar,
    "iic": iic,
    "patchwork": numbered_view,
    "crop-flip": crop_flip,
    "resized-crop-flip": resized_crop_flip,
    "plain": plain,
}


def recipe(
    augment: Any,
    size: Size,
    views: int | None = None,
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
    default: Any = None,
) -> Transform:
    """The transform that ``augment`` stands for.

    Args:
        augment: the name of a recipe; a dictionary {"name": ..., **arguments of the recipe}, or without a name, parameters of
            the recipe "patchwork"; a transform; any function of a batch of float images; True for the default; False or None
            for no augmentation ("plain").
        size: of the views, which may be smaller than the stored images; for recipes only.
        views: how many views of each image; None leaves it to the recipe.
        normalize: (mean, std), one value per channel: added as the last step of every view.
        default: what True stands for, as any of the other kinds.
    Raises:
        ValueError: if the name or an argument is unknown, or the recipe makes another number of views.
    """
    if augment is True:
        if default is None or default is True:
            raise ValueError(f"augment=True needs a default, and there is none here; pass one of {_names()}.")
        augment = default
    transform = _transform_of(augment, size, views)
    if isinstance(transform, Views):
        if views not in (None, len(transform.transforms)):
            raise ValueError(
                f"the augmentation makes {len(transform.transforms)} views of an image, {views} are needed; pass "
                f"another one, or Views(transform, {views})."
            )
    elif views is not None and not isinstance(transform, Lambda):
        transform = Views(transform, views)
    return transform if normalize is None else normalized(transform, *normalize)


def _transform_of(augment: Any, size: Size, views: int | None) -> Transform:
    if augment is None or augment is False:
        return plain(size)
    if isinstance(augment, (str, Mapping)):
        arguments = {"name": augment} if isinstance(augment, str) else dict(augment)
        if "name" not in arguments and is_dictionary_of_patchwork(arguments):
            return numbered_view(size, **arguments)
        return _named(arguments.pop("name", None), size, arguments)
    if isinstance(augment, Transform):
        return augment
    if not callable(augment) or isinstance(augment, type):
        raise ValueError(
            f"augment={augment!r} is not an augmentation; pass a transform, a function of a batch, True, False, or one of "
            f"{_names()}."
        )
    require_callable("augment", augment, "a batch of images")
    return Lambda(augment, views)


def _named(name: Any, size: Size, arguments: dict[str, Any]) -> Transform:
    if name not in RECIPES:
        near = difflib.get_close_matches(str(name), RECIPES, 3, 0.4)
        hint = f"did you mean {' or '.join(map(repr, near))}? The recipes are" if near else "the recipes are"
        problem = f"augment={name!r} is not a recipe" if name is not None else f'augment={arguments!r} has no "name"'
        raise ValueError(f"{problem}; {hint} {_names()}.")
    function = RECIPES[name]
    known = list(inspect.signature(function).parameters)[1:]
    unknown = [key for key in arguments if key not in known] if function is not numbered_view else []
    if unknown:
        raise ValueError(
            f"the recipe {name!r} has no argument {unknown[0]!r}; it takes {', '.join(known) or 'no arguments'}."
        )
    try:
        return function(size, **arguments)
    except (TypeError, ValueError) as error:
        if not arguments:
            raise
        raise ValueError(
            f"the recipe {name!r} cannot be made with {arguments} ({error}); pass other arguments."
        ) from error


def _names() -> str:
    return ", ".join(map(repr, RECIPES))


def normalized(transform: Transform, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """The transform with normalisation as the last step of each of its views."""
    if isinstance(transform, Views):
        return Views([normalized(part, mean, std) for part in transform.transforms])
    last = Normalize(mean, std)
    if not isinstance(transform, Lambda):
        return Compose([transform, last])

    def function(images: Tensor) -> Tensor | list[Tensor]:
        views = transform.function(images)
        return last(views) if isinstance(views, Tensor) else [last(view) for view in views]

    return Lambda(function, transform.count, transform.channels)
