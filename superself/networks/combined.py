"""CombinedNet joins a backbone and a predictor; MapNet does so with feature maps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from superself.networks.features import feature_maps, pooled_features
from superself.networks.replicas import apply_on_replicas


class CombinedNet(nn.Module):
    """A backbone and the predictor that follows it during training.

    Args:
        backbone: from images (B, C, H, W) to (B, D), (B, D, h, w) or (B, tokens, D).
        predictor: from features (B, D) to the input of the loss; it is moved to the backbone's device.

    Shape:
        images (B, C, H, W) -> the output of the predictor.

    Raises:
        TypeError: if one of the two is not a module.
        ValueError: at the first call, if the predictor starts with a linear layer for features of another width.
    """

    replica_devices: tuple[torch.device, ...] = ()  # set by ``replicated``

    def __init__(self, backbone: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        for role, part in (("backbone", backbone), ("predictor", predictor)):
            if not isinstance(part, nn.Module):
                raise TypeError(f"{role}={part!r} is not a module; pass an instance of nn.Module.")
        self.backbone = backbone
        reference = next(backbone.parameters(), None)
        self.predictor = predictor if reference is None else predictor.to(reference.device)
        self.to(memory_format=torch.channels_last)  # faster convolutions, same values

    def __call__(self, *inputs: Tensor) -> Any:
        """``forward``, on all devices of ``replicated``."""
        return apply_on_replicas(self, "__call__", *inputs) if self.replica_devices else super().__call__(*inputs)

    def features(self, images: Tensor) -> Tensor:
        """The features (B, D) of images (B, C, H, W)."""
        if self.replica_devices:
            return apply_on_replicas(self, "features", images)
        return pooled_features(self.backbone, images)

    def forward(self, images: Tensor) -> Tensor:
        """The prediction for images (B, C, H, W)."""
        features = self.features(images)
        self._require_fit(features.shape[1])
        return self.predictor(features)

    def _require_fit(self, width: int) -> None:
        """Raises a ValueError if the predictor starts with a linear layer that takes another width."""
        first = self.predictor
        while isinstance(first, nn.Sequential) and type(first).forward is nn.Sequential.forward and len(first):
            first = first[0]
        if type(first) is nn.Linear and first.in_features != width:
            raise ValueError(
                f"{type(self.backbone).__name__} gives features of width {width}, but the predictor starts with a linear layer "
                f"for {first.in_features}; pass a predictor that takes {width}, for example "
                f"nn.Linear({width}, {first.out_features})."
            )


class MapNet(CombinedNet):
    """A backbone and a predictor that takes its feature maps, before they are pooled.

    Args:
        backbone: as in CombinedNet; see ``feature_maps`` for the maps that each kind gives.
        predictor: from maps (B, D, h, w) to the input of the loss.

    Shape:
        images (B, C, H, W) -> the output of the predictor.
    """

    def forward(self, images: Tensor) -> Tensor:
        """The prediction for images (B, C, H, W)."""
        return self.predictor(feature_maps(self.backbone, images))


def compilable_networks(module: nn.Module) -> list[nn.Module]:
    """The networks to call ``compile()`` on: the children that have parameters, and the two parts of each CombinedNet.

    A CombinedNet is called as a whole by some algorithms and part by part by others, so all three are listed; compilation
    happens at the first call and costs nothing for those that are never called.
    """
    parts = []
    for child in module.children():
        parts += [child, *child.children()] if isinstance(child, CombinedNet) else [child]
    return [part for part in parts if next(part.parameters(), None) is not None]


@contextlib.contextmanager
def replicated(module: nn.Module, devices: Sequence[torch.device]) -> Iterator[None]:
    """Inside, every CombinedNet of ``module`` divides its batches among ``devices``; without devices nothing changes.

    Copies are made at every call and the modules stay the same, so that state, names and ``get_backbone()`` do too. Networks
    that are not part of a CombinedNet run on the first device.

    Args:
        module: on the first device.
        devices: accelerators of this process.
    """
    networks = [part for part in module.modules() if isinstance(part, CombinedNet)] if devices else []
    for network in networks:
        network.replica_devices = tuple(devices)
    try:
        yield
    finally:
        for network in networks:
            del network.replica_devices
