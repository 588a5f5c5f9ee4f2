"""LabHalves: a backbone of two networks, one for lightness and one for colour, each of which sees only its own channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from superself.basics.colour import rgb_to_lab
from superself.basics.validate import require_choice
from superself.networks.backbones import build_backbone
from superself.networks.combined import CombinedNet
from superself.networks.features import describe, feature_maps, pooled_features

L_MIDDLE, L_SCALE = 50.0, 25.0  # about the mean and standard deviation of L in photographs
AB_SCALE = 15.0  # about the deviation of a and b around 0


class LabHalves(nn.Module):
    """Two backbones in parallel: one sees the lightness L of an image, the other its colour ab; features are concatenated.

    It takes RGB images in [0, 1] and converts them to Lab internally, in float32 even under mixed precision, so it is used
    like any other backbone. L - 50 is divided by 25, a and b by 15, which gives photographs about mean 0 and deviation 1.

    Source: Zhang et al., Split-Brain Autoencoders, arXiv:1611.09842, Sec. 3.2; Tian et al., CMC, arXiv:1906.05849.
    Deviations: two networks of full width, so that any backbone fits; the papers halve the channels of one.
    Args:
        lightness: a backbone for 1 channel.
        colour: a backbone for 2 channels.
        use: "both", or "L" to return the features of the lightness only.
    Shape:
        images (B, 3, H, W) in [0, 1] -> (B, D_L + D_ab), or (B, D_L).
    Raises:
        ValueError: if ``use`` is neither.
    """

    def __init__(self, lightness: nn.Module, colour: nn.Module, use: str = "both") -> None:
        super().__init__()
        require_choice("features", use, ("both", "L"))
        self.lightness, self.colour, self.use = lightness, colour, use

    def describe(self) -> str:
        """Both halves in words; see ``superself.networks.describe``."""
        text = f"L: {describe(self.lightness)}; ab: {describe(self.colour)}"
        return text if self.use == "both" else f"{text}; features of L only"

    @staticmethod
    def lab(images: Tensor) -> Tensor:
        """CIE Lab (B, 3, H, W) of RGB images in [0, 1], in float32."""
        with torch.autocast(images.device.type, enabled=False):
            return rgb_to_lab(images.float())

    def split(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs of the two halves: L (B, 1, H, W) and ab (B, 2, H, W), scaled."""
        lab = self.lab(images)
        return (lab[:, :1] - L_MIDDLE) / L_SCALE, lab[:, 1:] / AB_SCALE

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The features of the two halves, (B, D_L) and (B, D_ab)."""
        lightness, colour = self.split(images)
        return pooled_features(self.lightness, lightness), pooled_features(self.colour, colour)

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The feature maps of the two halves, (B, D_L, h, w) and (B, D_ab, h, w)."""
        lightness, colour = self.split(images)
        return feature_maps(self.lightness, lightness), feature_maps(self.colour, colour)

    def forward(self, images: Tensor) -> Tensor:
        """The features (B, D) of images."""
        if self.use == "L":
            return pooled_features(self.lightness, self.split(images)[0])
        return torch.cat(self.features(images), 1)


class PerHalf(nn.Module):
    """A head for each half: called with the features or maps of L and of ab, it returns the outputs of the two heads."""

    def __init__(self, lightness: nn.Module, colour: nn.Module) -> None:
        super().__init__()
        self.lightness, self.colour = lightness, colour

    def forward(self, lightness: Tensor, colour: Tensor) -> tuple[Tensor, Tensor]:
        """The output of each head for its own half."""
        return self.lightness(lightness), self.colour(colour)


class HalvesNet(CombinedNet):
    """LabHalves and a predictor that receives the two halves separately, before they are concatenated.

    Args:
        backbone: both halves.
        predictor: called with the features (B, D) of L and of ab, usually PerHalf.
        maps: call it with their feature maps (B, D, h, w) instead.
    Shape:
        images (B, 3, H, W) in [0, 1] -> the output of the predictor, usually a pair.
    """

    backbone: LabHalves

    def __init__(self, backbone: LabHalves, predictor: nn.Module, maps: bool = False) -> None:
        super().__init__(backbone, predictor)
        self.maps = maps

    def forward(self, images: Tensor) -> Any:
        """The predictions of both halves."""
        return self.predictor(*(self.backbone.maps(images) if self.maps else self.backbone.features(images)))


def build_halves(backbone: Any, shape: tuple[int, int, int], use: str | None = None) -> LabHalves:
    """Builds the two halves for images of the given shape.

    Args:
        backbone: None or a name as in ``build_backbone``, built once for 1 channel and once for 2; a pair (for L, for ab) of
            names or modules; or LabHalves, which are returned unchanged.
        shape: (C, H, W) of the images.
        use: as in LabHalves; None means "both", or the setting of LabHalves that were passed.

    Raises:
        ValueError: if the images are not RGB.
        TypeError: if ``backbone`` is something else, for example a single module for three channels.
    """
    if shape[0] != 3:
        raise ValueError(
            f"the images have {shape[0]} channels, but Lab needs the 3 of RGB; pass colour images, or use an algorithm that "
            "needs no colour."
        )
    if isinstance(backbone, LabHalves):
        if use is not None:
            require_choice("features", use, ("both", "L"))
            backbone.use = use
        return backbone
    parts = backbone if isinstance(backbone, (tuple, list)) else (backbone, backbone)
    if isinstance(backbone, nn.Module) or len(parts) != 2:
        raise TypeError(
            f"backbone={backbone!r} is not a pair of halves; pass (a module for 1 channel, a module for 2 channels), "
            "LabHalves, a name or None."
        )
    lightness, colour = (
        build_backbone(part, (channels, *shape[1:])) for part, channels in zip(parts, (1, 2), strict=True)
    )
    return LabHalves(lightness, colour, use or "both")


def without_normalization(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a Supervisor whose backbone is LabHalves: it needs RGB in [0, 1], so images are not normalised.

    Raises:
        ValueError: if the options contain ``normalize`` or ``sobel``.
    """
    if options.get("normalize") is not None:
        raise ValueError(
            f"normalize={options['normalize']} changes the colours that Lab is computed from; leave it out: L and ab are "
            "scaled by fixed numbers."
        )
    if options.get("sobel"):
        raise ValueError(
            "sobel=True leaves no colours for Lab to be computed from; leave it out, or use another algorithm."
        )
    return {**options, "normalize": (0.0, 1.0)}
