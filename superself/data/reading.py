"""Reading: what is done to the pixels of every image when it is read, so that all else sees [0, 1] and the wanted channels."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from superself.basics.validate import require_count
from superself.data.pixels import Header

FULL_SCALE = {torch.uint8: 255.0, torch.uint16: 65535.0}


def to_float(images: Tensor) -> Tensor:
    """Pixels as float32: uint8 / 255, uint16 / 65535, floating point unchanged.

    Shape:
        images (...) -> (...).
    """
    return images.float() / FULL_SCALE[images.dtype] if images.dtype in FULL_SCALE else images.float()


@dataclass(frozen=True)
class Reading:
    """Steps that every image goes through when it is read, before it is resized, augmented and normalised.

    It consists of plain values, so that a checkpoint can contain it.

    Args:
        norm: value that pixels are divided by to reach [0, 1], for example 10000 for many GeoTIFFs; None divides uint8 by 255,
            uint16 by 65535 and floating point by 1. Images in memory become float32 by it.
        num_channels: how many channels are kept, the first ones; None keeps all.
        single_channel: repeats the one channel of each image ``num_channels`` times, 3 if that is None.
    Shape:
        images (..., C, H, W) -> (..., C', H, W).
    Raises:
        TypeError: if ``norm`` is not a number or ``single_channel`` no truth value.
        ValueError: if ``norm`` is not positive or ``num_channels`` below 1.
    """

    norm: float | None = None
    num_channels: int | None = None
    single_channel: bool = False

    def __post_init__(self) -> None:
        if self.norm is not None:
            if isinstance(self.norm, bool) or not isinstance(self.norm, (int, float)):
                raise TypeError(f"norm={self.norm!r} is not a number; pass the value that images are divided by.")
            if not (math.isfinite(self.norm) and self.norm > 0):
                raise ValueError(
                    f"norm={self.norm} cannot divide images; pass a number larger than 0, the largest value that pixels can have."
                )
        if self.num_channels is not None:
            require_count("num_channels", self.num_channels, "is how many channels of each image are kept")
        if not isinstance(self.single_channel, bool):
            raise TypeError(f"single_channel={self.single_channel!r} is neither True nor False; pass one of them.")

    @classmethod
    def of(cls, norm: float | None, num_channels: int | None, single_channel: bool) -> Reading | None:
        """The steps, or None if there are none."""
        reading = cls(norm, num_channels, single_channel)
        return None if reading == cls() else reading

    def options(self) -> dict[str, Any]:
        """The steps as arguments of ``open_images``."""
        return asdict(self)

    def channels(self, stored: int) -> int:
        """How many channels an image with this number of stored ones has after reading."""
        if self.single_channel and stored == 1:
            return self.num_channels or 3
        return min(stored, self.num_channels or stored)

    def header(self, header: Header) -> Header:
        """The header of an image with the channels that it has after reading."""
        return header._replace(channels=self.channels(header.channels))

    def dtype(self, stored: torch.dtype) -> torch.dtype:
        """The type of the pixels after reading."""
        return stored if self.norm is None or self.norm == FULL_SCALE.get(stored) else torch.float32

    def check(self, stored: set[int], channels: int) -> None:
        """Refuses steps that the images of a data set do not allow.

        Args:
            stored: the numbers of channels that occur in the files.
            channels: that most images have after reading.
        Raises:
            ValueError: if the steps are impossible.
        """
        if self.single_channel and 1 not in stored:
            raise ValueError(
                f"single_channel=True is for images of one channel, and these have {min(stored)}; leave it out, or pass "
                "num_channels=1 alone to keep the first one."
            )
        if self.num_channels is not None and channels != self.num_channels:
            repeat = ", or single_channel=True to repeat the one" if channels == 1 else ""
            raise ValueError(
                f"num_channels={self.num_channels} is more than the {channels} channel{'s' * (channels > 1)} of the images; "
                f"pass at most {channels}{repeat}."
            )

    def select(self, images: Tensor) -> Tensor:
        """Images (..., C, H, W) with the wanted channels (..., C', H, W)."""
        channels = self.channels(images.shape[-3])
        if channels > images.shape[-3]:
            return images.expand(*images.shape[:-3], channels, -1, -1)
        return images[..., :channels, :, :]

    def scale(self, images: Tensor) -> Tensor:
        """Images (...) divided by ``norm``, as float32; unchanged where ``to_float`` does the same later."""
        if self.norm is None or self.norm == FULL_SCALE.get(images.dtype):
            return images
        return images.float() / self.norm

    def __call__(self, images: Tensor) -> Tensor:
        """Raw images with the wanted channels, in [0, 1]."""
        return self.scale(self.select(images))
