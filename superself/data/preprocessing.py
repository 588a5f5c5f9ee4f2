"""From stored pixels to the input of a network: float32, normalised per channel."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from superself.basics.derivatives import sobel_derivatives
from superself.data.reading import FULL_SCALE, Reading, to_float

if TYPE_CHECKING:
    from superself.data.images import Images

SOBEL_CHANNELS = 3  # derivatives along x and y, and a third channel of zeros for networks that take RGB


def channel_statistics(images: Images) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, in the units of ``to_float``, measured on 1024 of the images.

    Shape:
        -> (C,), (C,) float64.
    """
    pixels = (to_float(image).double().flatten(1) for image in images.sample(1024))  # each (C, n)
    moments = torch.stack([torch.stack([p.mean(1), p.square().mean(1)]) for p in pixels])  # (n, 2, C)
    mean, square = moments.mean(0)
    return mean, (square - mean.square()).clamp(min=0).sqrt()


def check_normalize(normalize: Any) -> tuple[Tensor, Tensor]:
    """(mean, std), each one value per channel or one number, as two vectors of float32 on the CPU.

    Raises:
        TypeError: if it is not a pair of numbers, sequences, arrays or tensors.
        ValueError: if a value is not finite, or a std not positive.
    """
    wrong = f"normalize={normalize!r} must be (mean, std), each a number or one value per channel."
    if not isinstance(normalize, (tuple, list)) or len(normalize) != 2:
        raise TypeError(wrong)
    try:
        mean, std = (torch.as_tensor(value, dtype=torch.float32, device="cpu").flatten() for value in normalize)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(wrong) from error
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise ValueError(f"normalize={normalize!r} needs finite values and stds larger than 0; pass such (mean, std).")
    return mean, std


@dataclass(frozen=True)
class Preprocessing:
    """The normalisation of every batch before the network: (x - mean) / std, with x from ``to_float``.

    Images that were opened with ``norm``, ``num_channels`` or ``single_channel`` have gone through these steps when they were
    read, before augmentation. The ``preprocessing`` of an exported backbone does them too: it takes raw images, as they are in
    the files. ``sobel`` comes last, so that augmentation sees images.

    It consists of plain values, so that a checkpoint can contain it.

    Args:
        shape: (C, H, W) of the images that the network was trained on, after reading.
        dtype: name of the type in which they were stored: "uint8", "uint16" or "float32".
        mean: one value per channel.
        std: one value per channel.
        sobel: replaces the normalised channels by the Sobel derivatives of their mean along x and y, and a channel of zeros.
        reading: the steps when images are read; None for none.
        raw: whether the images that it is called with have not gone through ``reading`` yet. Without it, ``reading`` is
            applied where it is missing for certain: to integers, and to other numbers of channels.
    Shape:
        images (B, C, h, w) of any size -> (B, C, h, w) float32, or (B, 3, h, w) with ``sobel``.
    Raises:
        ValueError: if the number of means or stds is not that of the channels, or a std is not positive.
    """

    shape: tuple[int, int, int]
    dtype: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sobel: bool = False
    reading: Reading | None = None
    raw: bool = False

    def __post_init__(self) -> None:
        channels = self.shape[0]
        if len(self.mean) != channels or len(self.std) != channels:
            raise ValueError(
                f"normalize has {len(self.mean)} means and {len(self.std)} stds for images of {channels} channels; "
                "pass one value per channel, as (mean, std)."
            )
        if min(self.std) <= 0:
            raise ValueError(f"normalize has std {self.std}; pass stds larger than 0.")

    @classmethod
    def of(cls, images: Images, normalize: tuple[Any, Any] | None = None, sobel: bool = False) -> Preprocessing:
        """The preprocessing for a data set: measured on 1024 of its images, or with the given (mean, std).

        Args:
            images: the opened data set.
            normalize: (mean, std), each one value per channel, or one number for all channels.
            sobel: see the class.
        """
        channels = images.shape[0]
        if images.dtype.is_floating_point:
            low, high = images.sample(64).aminmax()
            if low < 0 or high > 1:
                warnings.warn(
                    f"the images are floating-point numbers from {low:.4g} to {high:.4g}, and views that change brightness "
                    "or colour, and Lab, clip values outside [0, 1]; divide them by their largest possible value (norm=255 "
                    "for 8 bits), or pass uint8. They are normalised here.",
                    stacklevel=2,
                )
        if normalize is None:
            mean, std = channel_statistics(images)
            std = torch.where(std > 1e-6, std, 1.0)  # a constant channel has nothing to scale
        else:
            mean, std = check_normalize(normalize)
            mean, std = (value.expand(channels) if value.numel() == 1 else value for value in (mean, std))
        dtype = str(images.dtype).removeprefix("torch.")
        return cls(tuple(images.shape), dtype, tuple(mean.tolist()), tuple(std.tolist()), sobel, images.reading)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network gets."""
        return (SOBEL_CHANNELS, *self.shape[1:]) if self.sobel else self.shape

    def for_raw_images(self, raw: bool = True) -> Preprocessing:
        """The same for images as they are in the files, or with ``raw=False`` for images that were read."""
        return replace(self, raw=raw and self.reading is not None)

    def for_images(self, images: Images) -> Preprocessing:
        """The same for the batches of an opened data set, which were read with steps of their own or are raw."""
        return self.for_raw_images() if images.reading is None else replace(self, reading=images.reading, raw=False)

    def __call__(self, images: Tensor) -> Tensor:
        """The normalised batch."""
        if self.reading is not None and (self.raw or images.dtype in FULL_SCALE or images.shape[1] != self.shape[0]):
            images = self.reading(images)
        if images.shape[1] != len(self.mean):
            raise ValueError(
                f"the batch has {images.shape[1]} channels, the preprocessing was made for {len(self.mean)}; "
                "pass images with as many channels as in training."
            )
        if images.dtype in FULL_SCALE and self.dtype == "float32" and not all(0 <= mean <= 1 for mean in self.mean):
            raise ValueError(
                f"the batch is {str(images.dtype).removeprefix('torch.')}, and the preprocessing was measured on float32 "
                f"images with means {[round(mean, 3) for mean in self.mean]}, which are not in [0, 1]; "
                "pass float32 images of the same range."
            )
        normalised = (to_float(images) - _constant(self.mean, images.device)) / _constant(self.std, images.device)
        if not self.sobel:
            return normalised
        derivatives = sobel_derivatives(normalised.mean(1, keepdim=True))  # (B, 2, h, w)
        return torch.cat([derivatives, torch.zeros_like(derivatives[:, :1])], 1)

    def undo(self, images: Tensor) -> Tensor:
        """The inverse: from normalised images (B, C, h, w) to the values of ``to_float``."""
        if self.sobel:
            raise ValueError(
                "sobel=True cannot be undone, since derivatives do not hold an image; show the images themselves."
            )
        return images.float() * _constant(self.std, images.device) + _constant(self.mean, images.device)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``from_dict``."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of ``to_dict``, also of versions that had fewer entries."""
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        reading = values.get("reading")
        return cls(**{**values, "reading": None if reading is None else Reading(**reading)})


@lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    # Cached, since creating a tensor from Python values waits for the device. Not an inference tensor, which could not
    # be used in training later.
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(-1, 1, 1)  # (C, 1, 1)
