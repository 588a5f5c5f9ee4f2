"""Normalisation that does not mix the images of a batch."""

from __future__ import annotations

from torch import nn


class LayerNorm2d(nn.GroupNorm):
    """Layer norm of feature maps: mean and variance over (C, H, W) of each image, scale and shift per channel.

    An image comes out the same whatever the other images in the batch, in train mode too. Group norm with one group is
    exactly this.

    Source: Ba et al., Layer Normalization, arXiv:1607.06450; as group norm: Wu & He, arXiv:1803.08494.
    Deviations: one scale and shift per channel, not per position, so that any image size fits.

    Args:
        channels: C of the maps.
        eps: added to the variance.

    Shape:
        (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(num_groups=1, num_channels=channels, eps=eps)


def use_layer_norm(network: nn.Module) -> nn.Module:
    """Replaces every ``nn.BatchNorm2d`` inside a network by a fresh LayerNorm2d, in place, and returns the network.

    The activation that timm's batch norms hold inside stays behind the new norm.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                norm = LayerNorm2d(child.num_features, eps=child.eps)
                norm.to(next((p.device for p in (*child.parameters(), *child.buffers())), "cpu"))
                after = [getattr(child, held) for held in ("drop", "act") if hasattr(child, held)]
                setattr(module, name, nn.Sequential(norm, *after) if after else norm)
    return network
