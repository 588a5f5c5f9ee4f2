"""Random transforms of whole batches, with parameters drawn for each sample, and recipes built from them."""

from superself.augment.collate import (
    BaseCollateFunction,
    ImageCollateFunction,
    MultiViewCollate,
    SimCLRCollateFunction,
)
from superself.augment.colour import ColorJitter, RandomGrayscale, RGBToLab
from superself.augment.filters import GaussianBlur, RandomAdjustSharpness, RandomSobel, Sobel
from superself.augment.geometry import (
    CenterCrop,
    ElasticTransform,
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotation90,
    RandomVerticalFlip,
    RandomZoom,
    Resize,
)
from superself.augment.intensity import (
    Normalize,
    RandomAutocontrast,
    RandomEqualize,
    RandomInvert,
    RandomPosterize,
    RandomSolarize,
)
from superself.augment.jpeg import JPEG
from superself.augment.masking import PixelMask, RandomBlocks, RandomErasing
from superself.augment.noise import GaussianNoise
from superself.augment.patchwork import RandomChannelMean, RandomPadAndCrop
from superself.augment.per_image import PerImage
from superself.augment.recipes import RECIPES, recipe
from superself.augment.show import show_views
from superself.augment.tiles import GridTiles, OverlappingPatches, Standardize
from superself.augment.transform import (
    Compose,
    GeometricTransform,
    Lambda,
    MultiCrop,
    RandomApply,
    RandomChoice,
    Transform,
    Views,
)

__all__ = [
    "JPEG",
    "RECIPES",
    "BaseCollateFunction",
    "CenterCrop",
    "ColorJitter",
    "Compose",
    "ElasticTransform",
    "GaussianBlur",
    "GaussianNoise",
    "GeometricTransform",
    "GridTiles",
    "ImageCollateFunction",
    "Lambda",
    "MultiCrop",
    "MultiViewCollate",
    "Normalize",
    "OverlappingPatches",
    "PerImage",
    "PixelMask",
    "RGBToLab",
    "RandomAdjustSharpness",
    "RandomAffine",
    "RandomApply",
    "RandomAutocontrast",
    "RandomBlocks",
    "RandomChannelMean",
    "RandomChoice",
    "RandomCrop",
    "RandomEqualize",
    "RandomErasing",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomInvert",
    "RandomPadAndCrop",
    "RandomPosterize",
    "RandomResizedCrop",
    "RandomRotation90",
    "RandomSobel",
    "RandomSolarize",
    "RandomVerticalFlip",
    "RandomZoom",
    "Resize",
    "SimCLRCollateFunction",
    "Sobel",
    "Standardize",
    "Transform",
    "Views",
    "recipe",
    "show_views",
]
