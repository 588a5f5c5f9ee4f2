"""LabHalves: a backbone of two, one for lightness and one for colour, which never see each other's channels."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from superself.basics.colour import rgb_to_lab
from superself.networks.backbones import build_backbone
from superself.networks.combined import CombinedNet, pool_features

L_MIDDLE, L_SCALE = 50.0, 25.0  # L of photographs has about this mean and deviation
AB_SCALE = 15.0  # about the deviation of a and b around 0


class LabHalves(nn.Module):
    """Two backbones side by side: one sees the lightness L of an image, the other its colour ab; features are concatenated.

    It takes RGB in [0, 1] and converts by itself, in float32 under mixed precision too, so that it is used like any other
    backbone. L - 50 is divided by 25, a and b by 15, which gives photographs about mean 0 and deviation 1.

    Source: Zhang et al., Split-Brain Autoencoders, arXiv:1611.09842, Sec. 3.2; Tian et al., CMC, arXiv:1906.05849.
    Deviations: two networks of full width each, so that any backbone fits; the papers halve the channels of one.
    Args:
        lightness: a backbone for 1 channel.
        colour: a backbone for 2 channels.
        use: "both", or "L" to give the features of the lightness alone.
    Shape:
        images (B, 3, H, W) in [0, 1] -> (B, D_L + D_ab), or (B, D_L).
    Raises:
        ValueError: if ``use`` is neither.
    """

    def __init__(self, lightness: nn.Module, colour: nn.Module, use: str = "both") -> None:
        super().__init__()
        if use not in ("both", "L"):
            raise ValueError(f"features={use!r} names no features of the two halves; pass 'both' or 'L'.")
        self.lightness, self.colour, self.use = lightness, colour, use

    @staticmethod
    def lab(images: Tensor) -> Tensor:
        """CIE Lab (B, 3, H, W) of RGB images in [0, 1], in float32."""
        with torch.autocast(images.device.type, enabled=False):
            return rgb_to_lab(images.float())

    def split(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What each half is given: L (B, 1, H, W) and ab (B, 2, H, W), scaled."""
        lab = self.lab(images)
        return (lab[:, :1] - L_MIDDLE) / L_SCALE, lab[:, 1:] / AB_SCALE

    def halves(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the two backbones return, features or maps, the lightness first."""
        lightness, colour = self.split(images)
        return self.lightness(lightness), self.colour(colour)

    def forward(self, images: Tensor) -> Tensor:
        """The features (B, D) of images."""
        if self.use == "L":
            return pool_features(self.lightness(self.split(images)[0]))
        return torch.cat([pool_features(output) for output in self.halves(images)], 1)


class PerHalf(nn.Module):
    """A head behind each half: (output of the L half, output of the ab half) -> (what one head gives, what the other gives)."""

    def __init__(self, lightness: nn.Module, colour: nn.Module) -> None:
        super().__init__()
        self.lightness, self.colour = lightness, colour

    def forward(self, lightness: Tensor, colour: Tensor) -> tuple[Tensor, Tensor]:
        """Each head on the output of its own half."""
        return self.lightness(lightness), self.colour(colour)


class HalvesNet(CombinedNet):
    """LabHalves and a predictor that is called with the outputs of both halves, before they are joined.

    Shape:
        images (B, 3, H, W) in [0, 1] -> what the predictor gives, as a rule a pair.
    """

    backbone: LabHalves

    def forward(self, images: Tensor) -> Any:
        """The predictions of both halves."""
        return self.predictor(*self.backbone.halves(images))


class Pool(nn.Module):
    """Features (B, D) of whatever a backbone returns; the first layer of a head behind a half."""

    def forward(self, output: Tensor) -> Tensor:
        """See ``pool_features``."""
        return pool_features(output)


def build_halves(backbone: Any, shape: tuple[int, int, int], use: str | None = None) -> LabHalves:
    """Gives the two halves for images of the given shape.

    Args:
        backbone: None or a name as in ``build_backbone``, built once for 1 channel and once for 2; a pair (for L, for ab) of
            names or modules; or LabHalves, taken as they are.
        shape: (C, H, W) of the images.
        use: see LabHalves; None takes "both", and LabHalves as they are.

    Raises:
        ValueError: if the images are not RGB.
        TypeError: if ``backbone`` is something else, a single module for three channels for example.
    """
    if shape[0] != 3:
        raise ValueError(
            f"the images have {shape[0]} channels, and Lab needs the 3 of RGB; pass colour images, or take an algorithm "
            "that does without colour."
        )
    if isinstance(backbone, LabHalves):
        if use is not None:
            backbone.use = LabHalves(backbone.lightness, backbone.colour, use).use
        return backbone
    parts = backbone if isinstance(backbone, (tuple, list)) else (backbone, backbone)
    if isinstance(backbone, nn.Module) or len(parts) != 2:
        raise TypeError(
            f"backbone={backbone!r} is no pair of halves; pass (a module for 1 channel, a module for 2 channels), LabHalves, "
            "a name or None."
        )
    lightness, colour = (
        build_backbone(part, (channels, *shape[1:])) for part, channels in zip(parts, (1, 2), strict=True)
    )
    halves = LabHalves(lightness, colour, use or "both")
    names = (getattr(half, "description", type(half).__name__) for half in (lightness, colour))
    halves.description = "L: {}; ab: {}".format(*names) + ("" if halves.use == "both" else "; features of L alone")
    if not any(isinstance(part, nn.Module) for part in parts):
        halves.rebuild = functools.partial(build_halves, backbone, shape, use)
    return halves


def keep_rgb(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a Supervisor whose backbone is LabHalves: images are not normalised, which Lab could not be made of.

    Raises:
        ValueError: if the options have a ``normalize`` of their own.
    """
    if options.get("normalize") is not None:
        raise ValueError(
            f"normalize={options['normalize']} changes the colours that Lab is made of; leave it out: L and ab are scaled by "
            "fixed numbers."
        )
    return {**options, "normalize": (0.0, 1.0)}
