"""Derivatives of images along x and y."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sobel_derivatives(grey: Tensor) -> Tensor:
    """The Sobel derivatives along x and y; the image's edge is repeated.

    Shape:
        grey (B, 1, H, W) -> (B, 2, H, W).
    """
    grey = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    # Differences along one axis, smoothed by (1, 2, 1) along the other. Unlike a convolution, sums stay exact in TF32.
    x, y = grey[..., 2:] - grey[..., :-2], grey[:, :, 2:] - grey[:, :, :-2]
    x = x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]
    y = y[..., :-2] + 2 * y[..., 1:-1] + y[..., 2:]
    return torch.cat([x, y], 1)
