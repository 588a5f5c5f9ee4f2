"""Decoders: from features to images of any size."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.functional import interpolate

FINEST = 32  # least number of channels
SMALLEST = 7  # pixels; largest side of the map that a feature vector is turned into


class Upsampling(nn.Module):
    """Enlarges feature maps to images in stages: resize, 3 x 3 convolution, batch norm, ReLU.

    Each stage at most doubles the size and halves the channels, down to 32. Each stage resizes to a given size, so that the
    output has exactly the size of the image, also if that is odd or not square. The last layer is a plain convolution.

    Args:
        channels: of the input maps.
        shape: (C, H, W) of the output.
        width: channels of the first stage; None means ``channels``.
        start: expected (h, w) of the input maps, which sets the number of stages; maps of other sizes work too.
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
        """Images (B, C, H, W) from maps (B, channels, h, w)."""
        for size, stage in zip(self.sizes, self.stages, strict=True):
            maps = stage(interpolate(maps, size=size, mode="nearest"))
        return self.last(maps)


class Decoder(nn.Sequential):
    """A linear layer from features to a small map, then ``Upsampling`` to an image.

    Args:
        features: D of the features.
        shape: (C, H, W) of the images; any size.
        width: channels of the small map.
    Shape:
        (B, D) -> (B, C, H, W), without norm or activation at the end.
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
