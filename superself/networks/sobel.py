"""SobelBackbone: a backbone that sees derivatives of the luma, where colours would be an easy way out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from superself.basics.colour import luma_derivatives
from superself.networks.backbones import build_backbone
from superself.networks.features import describe, feature_maps


class SobelBackbone(nn.Module):
    """A backbone whose first layer takes Sobel's derivatives of the luma along x and y; it has no weights.

    It takes images of any number of channels and is used, stored and exported like any other backbone. The derivatives are
    those of the preprocessed images.

    Source: Caron et al., DeepCluster, arXiv:1807.05520 (filter after normalisation, in the authors' code).
    Deviations: the luma instead of the mean of the channels; the image's edge is repeated, not padded with 0.
    Args:
        backbone: for 2 channels.
    Shape:
        images (B, C, H, W) -> the output of the backbone.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def describe(self) -> str:
        """In words; see ``superself.networks.describe``."""
        return f"Sobel filter, then {describe(self.backbone)}"

    def feature_maps(self, images: Tensor) -> Tensor:
        """See ``superself.networks.feature_maps``."""
        return feature_maps(self.backbone, luma_derivatives(images))

    def forward(self, images: Tensor) -> Any:
        """The features of images."""
        return self.backbone(luma_derivatives(images))


def build_sobel(backbone: str | nn.Module | None, shape: tuple[int, int, int], sobel: bool = True) -> nn.Module:
    """``build_backbone`` for images of the given shape, for 2 channels behind a Sobel filter if ``sobel``.

    Args:
        backbone: as in ``build_backbone``, a module for 2 channels; a SobelBackbone is returned unchanged.
        shape: (C, H, W) of the images.
        sobel: False returns what ``build_backbone`` does.
    """
    if not sobel or isinstance(backbone, SobelBackbone):
        return build_backbone(backbone, shape)
    return SobelBackbone(build_backbone(backbone, (2, *shape[1:])))
