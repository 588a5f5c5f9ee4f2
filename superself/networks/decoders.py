"""Decoders: from features back to images, of whatever size the images have."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.functional import interpolate

FINEST = 32  # channels at the full size, at the least
SMALLEST = 7  # pixels; the map that a vector of features is turned into has at most this side


class Upsampling(nn.Module):
    """Feature maps made larger, up to an image: resize, 3 x 3 convolution, batch norm, ReLU, and again.

    Each stage at most doubles the size and halves the channels, down to 32. Sizes are given to each resizing, so that the last
    one is exactly that of the image, odd and not square too. The last layer is a plain convolution.

    Args:
        channels: of the maps that come in.
        shape: (C, H, W) that come out.
        width: channels of the first stage; None takes ``channels``.
        start: (h, w) of the maps that are expected, which decides how many stages there are; maps of other sizes fit too.
    Shape:
        (B, channels, h, w) -> (B, C, H, W).
    """

    def __init__(
        self,
        channels: int,
        shape: tuple[int, int, int],
        width: int | None = None,
        start: tuple[int, int] = (SMALLEST, SMALLEST),
    ) -> None:
        super().__init__()
        out_channels, *size = shape
        steps = max(math.ceil(math.log2(side / s)) for side, s in zip(size, start, strict=True))
        self.sizes = [tuple(math.ceil(side / 2**left) for side in size) for left in reversed(range(max(steps, 1)))]
        widths = [max(FINEST, (width or channels) >> stage) for stage in range(len(self.sizes))]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
            for before, after in zip([channels, *widths], widths, strict=False)
        )
        self.last = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """Images (B, C, H, W) from maps."""
        for size, stage in zip(self.sizes, self.stages, strict=True):
            maps = stage(interpolate(maps, size=size, mode="nearest"))
        return self.last(maps)


class Decoder(nn.Sequential):
    """Features turned into a small map by a linear layer, then into an image by ``Upsampling``.

    Args:
        features: D of the features.
        shape: (C, H, W) of the images; any size.
        width: channels of the small map.
    Shape:
        (B, D) -> (B, C, H, W), with neither norm nor activation at the end.
    """

    def __init__(self, features: int, shape: tuple[int, int, int], width: int = 128) -> None:
        height, width_pixels = shape[1:]
        halvings = max(0, math.ceil(math.log2(max(height, width_pixels) / SMALLEST)))
        start = math.ceil(height / 2**halvings), math.ceil(width_pixels / 2**halvings)
        super().__init__(
            nn.Linear(features, width * start[0] * start[1]),
            nn.Unflatten(1, (width, *start)),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            Upsampling(width, shape, start=start),
        )
