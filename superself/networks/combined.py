"""CombinedNet joins a backbone and a predictor; pool_features and feature_width make any backbone fit in."""

from __future__ import annotations

import torch
from torch import nn

_OUTPUTS = "one floating-point tensor (B, D), (B, D, h, w) or (B, tokens, D)"


class CombinedNet(nn.Module):
    """A backbone and the predictor that stands behind it while it is trained.

    Args:
        backbone: from images (B, C, H, W) to (B, D), (B, D, h, w) or (B, tokens, D).
        predictor: from features (B, D) to what the loss takes.

    Shape:
        images (B, C, H, W) -> the output of the predictor.

    Raises:
        TypeError: if one of the two is not a module.
    """

    def __init__(self, backbone: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        for role, part in (("backbone", backbone), ("predictor", predictor)):
            if not isinstance(part, nn.Module):
                raise TypeError(f"{role}={part!r} is not a module; pass an instance of nn.Module.")
        self.backbone = backbone
        reference = next(backbone.parameters(), None)  # where the backbone is, the predictor goes
        self.predictor = predictor if reference is None else predictor.to(reference.device)
        self.to(memory_format=torch.channels_last)  # faster convolutions; the values stay

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Gives the features (B, D) of images (B, C, H, W)."""
        return pool_features(self.backbone(images))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Gives the prediction for images (B, C, H, W)."""
        return self.predictor(self.features(images))


def pool_features(output: torch.Tensor) -> torch.Tensor:
    """Turns what a backbone returns into features (B, D): maps and tokens are averaged.

    Shape:
        (B, D), (B, D, h, w) or (B, tokens, D) -> (B, D).

    Raises:
        ValueError: if the output is anything else.
    """
    if not isinstance(output, torch.Tensor):
        raise ValueError(
            f"The backbone returned a {type(output).__name__}, but {_OUTPUTS} is needed; "
            "wrap the backbone in a module that returns the tensor with the features."
        )
    if output.ndim not in (2, 3, 4) or not output.is_floating_point():
        raise ValueError(
            f"The backbone returned a tensor of shape {tuple(output.shape)} and type {output.dtype}, "
            f"but {_OUTPUTS} is needed; change what its forward() returns."
        )
    if output.ndim == 4:
        return output.mean(dim=(2, 3))
    if output.ndim == 3:
        return output.mean(dim=1)
    return output


@torch.no_grad()
def feature_width(backbone: nn.Module, shape: tuple[int, int, int]) -> int:
    """Finds the width D of a backbone's features by running two images of zeros through it.

    The run is in eval mode; the mode of each submodule and the random state are put back afterwards.

    Args:
        backbone: any module that CombinedNet takes, on any device.
        shape: (C, H, W) of the images.

    Raises:
        ValueError: if the backbone cannot take such images, or its output cannot be used.
    """
    reference = next(backbone.parameters(), torch.zeros(()))
    images = torch.zeros(2, *shape, device=reference.device, dtype=reference.dtype)
    modes = [(module, module.training) for module in backbone.modules()]
    try:
        with torch.random.fork_rng(devices=[reference.device] if reference.is_cuda else []):
            output = backbone.eval()(images)
    except Exception as error:
        raise ValueError(
            f"{type(backbone).__name__} failed on a batch of zeros of shape {tuple(images.shape)} ({error}); "
            f"pass a backbone that takes {shape[0]} channels and images of {shape[1]} x {shape[2]}, or "
            "another image_size."
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    features = pool_features(output)
    if len(features) != len(images):
        raise ValueError(
            f"{type(backbone).__name__} returned shape {tuple(output.shape)} for {len(images)} images, but "
            "the first dimension must be the image; change what its forward() returns."
        )
    return features.shape[1]


def tile_width(backbone: nn.Module, shape: tuple[int, int, int], side: int, remedy: str) -> int:
    """``feature_width`` of square tiles of images, for a backbone that takes the images.

    Args:
        backbone: any module that CombinedNet takes.
        shape: (C, H, W) of the images.
        side: of a tile, in pixels.
        remedy: what to pass for tiles that the backbone may take.

    Raises:
        ValueError: if the backbone cannot take tiles.
    """
    try:
        return feature_width(backbone, (shape[0], side, side))
    except ValueError as error:
        raise ValueError(
            f"{type(backbone).__name__} takes images of {shape[1]} x {shape[2]} but no tiles of {side} x {side}; pass "
            f"{remedy}, or another backbone, for example 'resnet18'."
        ) from error


def compilable_networks(module: nn.Module) -> list[nn.Module]:
    """The children that have parameters, and the two parts of each CombinedNet, which may be called one by one."""
    parts = []
    for child in module.children():
        parts += [child, *child.children()] if isinstance(child, CombinedNet) else [child]
    return [part for part in parts if next(part.parameters(), None) is not None]
