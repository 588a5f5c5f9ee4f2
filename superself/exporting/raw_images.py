"""RawImages: preprocessing and backbone as one network without superself's classes, which TorchScript and ONNX can hold."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from superself.data import Preprocessing
from superself.data.reading import FULL_SCALE
from superself.networks import pooled_features
from superself.networks.modes import evaluation_mode


class PooledBackbone(nn.Module):
    """A backbone whose output is pooled: preprocessed images (B, C, H, W) -> features (B, D)."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """The features (B, D)."""
        return pooled_features(self.backbone, images)


class FixedSize(nn.Module):
    """Refuses images of another size than a traced network was traced with, which would silently give other features.

    Args:
        backbone: preprocessed images -> features (B, D).
        height: H.
        width: W.
    """

    def __init__(self, backbone: nn.Module, height: int, width: int) -> None:
        super().__init__()
        self.backbone, self.height, self.width = backbone, height, width

    def forward(self, images: Tensor) -> Tensor:
        """The features (B, D)."""
        if images.shape[2] != self.height or images.shape[3] != self.width:
            raise ValueError(
                f"this network was exported for images of {self.height} x {self.width}; resize the images."
            )
        return self.backbone(images)


class Steps(nn.Module):
    """``Preprocessing`` of raw images as a module: channels, scale, normalisation, and Sobel derivatives.

    Shape:
        images (B, C, H, W) of uint8, uint16 or floating point -> (B, C', H, W) float32.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        reading = preprocessing.reading
        norm = None if reading is None else reading.norm
        self.uint8_scale = float(norm or FULL_SCALE[torch.uint8])
        self.uint16_scale = float(norm or FULL_SCALE[torch.uint16])
        self.float_scale = float(norm or 1.0)
        self.channels = preprocessing.shape[0]
        self.repeats = reading is not None and reading.single_channel
        self.selects = reading is not None and reading.num_channels is not None
        self.sobel = preprocessing.sobel
        means_of_floats = preprocessing.dtype == "float32" and not all(0 <= mean <= 1 for mean in preprocessing.mean)
        self.floats_only = means_of_floats and norm is None
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(-1, 1, 1))  # (C', 1, 1)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(-1, 1, 1))  # (C', 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """What the backbone takes."""
        if self.floats_only and not images.is_floating_point():
            raise ValueError(
                "this network was trained on floating-point images that are not in [0, 1]; pass such images."
            )
        if images.dtype == torch.uint8:
            scale = self.uint8_scale
        elif images.dtype == torch.uint16:
            scale = self.uint16_scale
        else:
            scale = self.float_scale
        images = images.float() / scale
        if self.repeats and images.shape[1] == 1:
            images = images.expand(-1, self.channels, -1, -1)
        elif self.selects:
            images = images[:, : self.channels]
        images = (images - self.mean) / self.std
        return sobel_images(images) if self.sobel else images


class RawImages(nn.Module):
    """Raw images, as they are in the files, to features.

    Args:
        steps: the preprocessing.
        backbone: preprocessed images -> features (B, D).
    """

    def __init__(self, steps: nn.Module, backbone: nn.Module) -> None:
        super().__init__()
        self.steps, self.backbone = steps, backbone

    def forward(self, images: Tensor) -> Tensor:
        """The features (B, D)."""
        return self.backbone(self.steps(images))


class TwoOutputs(RawImages):
    """``RawImages`` that also returns what the backbone gets, so that this place in the graph has a name."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The features (B, D) and the preprocessed images (B, C', H, W)."""
        preprocessed = self.steps(images)
        return self.backbone(preprocessed), preprocessed


def sobel_images(images: Tensor) -> Tensor:
    """The Sobel derivatives of the channels' mean along x and y, and a channel of zeros: (B, C, H, W) -> (B, 3, H, W).

    The same as ``Preprocessing`` with ``sobel`` computes, in operations that can be exported.
    """
    grey = F.pad(images.mean(1, keepdim=True), [1, 1, 1, 1], mode="replicate")
    x, y = grey[:, :, :, 2:] - grey[:, :, :, :-2], grey[:, :, 2:] - grey[:, :, :-2]
    x = x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]
    y = y[:, :, :, :-2] + 2 * y[:, :, :, 1:-1] + y[:, :, :, 2:]
    return torch.cat([x, y, torch.zeros_like(x)], 1)


@contextlib.contextmanager
def exportable_copy(backbone: nn.Module) -> Iterator[nn.Module]:
    """A copy on the CPU in evaluation mode without gradients, in a block that is quiet about tracing.

    TorchScript works, but torch calls it deprecated at every step; the exporters log what they skip.
    """
    copied = copy.deepcopy(backbone).cpu().float().requires_grad_(False)
    for module in copied.modules():
        vars(module).pop("preprocessing", None)  # of superself's classes; its steps are exported as a module
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), torch.no_grad(), evaluation_mode(copied):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield copied
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
