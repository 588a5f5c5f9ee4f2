"""Feature maps and tokens of the networks of torchvision and timm, which return pooled features by themselves.

Used through ``superself.networks.features``; timm is not imported, its networks are recognised by their methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchvision import models

# Their children run in the order of their registration up to the pooling.
_TORCHVISION = (
    models.AlexNet,
    models.ConvNeXt,
    models.DenseNet,
    models.EfficientNet,
    models.GoogLeNet,
    models.Inception3,
    models.MaxVit,
    models.MNASNet,
    models.MobileNetV2,
    models.MobileNetV3,
    models.RegNet,
    models.ResNet,
    models.ShuffleNetV2,
    models.SqueezeNet,
    models.SwinTransformer,
    models.VGG,
)
_AFTER_MAPS = ("avgpool", "classifier", "fc", "head", "flatten", "dropout")
_HEADS_OF_MAPS = (models.ConvNeXt, models.MaxVit, models.SqueezeNet)  # whose head takes (B, D, 1, 1), not (B, D)
_VIT_PARTS = (
    "patch_embed",
    "_pos_embed",
    "norm_pre",
    "blocks",
    "norm",
)  # of timm's VisionTransformer and its subclasses


def patch_projection(network: nn.Module) -> nn.Module | None:
    """The layer of a vision transformer that embeds patches of the image: a convolution, or several; None without one.

    It is the ``conv_proj`` of torchvision's networks and ``patch_embed.proj`` of timm's, or of a part of the network.
    """
    for module in network.modules():
        for found in (getattr(module, "conv_proj", None), getattr(getattr(module, "patch_embed", None), "proj", None)):
            if isinstance(found, nn.Module):
                return found
    return None


def has_torchvision_maps(network: nn.Module) -> bool:
    """Whether ``torchvision_maps`` can be taken: of these classes themselves; a subclass may compute something else."""
    return type(network) in _TORCHVISION


def torchvision_maps(network: nn.Module, images: Tensor) -> Tensor:
    """The maps (B, D, h, w) of a convolutional network of torchvision before its global pooling."""
    maps = network._transform_input(images) if hasattr(network, "_transform_input") else images
    for name, child in network.named_children():
        if name in _AFTER_MAPS:
            break
        if not name.lower().startswith("aux"):
            for layer in child if isinstance(child, nn.ModuleList) else [child]:
                maps = layer(maps)
    return maps.relu() if isinstance(network, models.DenseNet) else maps


def torchvision_head(network: nn.Module, maps: Tensor) -> Tensor:
    """Applies what follows the pooling of a torchvision network at each place of its maps -> (B, D', h, w)."""
    *_, last = network.children()
    if next(last.parameters(), None) is None:
        return maps

    def head(places: Tensor) -> Tensor:
        if isinstance(network, _HEADS_OF_MAPS):
            return last(places)
        return last(network.avgpool(places).flatten(1) if hasattr(network, "avgpool") else places.flatten(1))

    return apply_at_each_place(head, maps)


def apply_at_each_place(head: Callable[[Tensor], Tensor], maps: Tensor, channels_last: bool = False) -> Tensor:
    """Applies a head that takes maps, as if each place were a whole map of 1 x 1.

    Shape:
        maps (B, D, h, w), or (B, h, w, D) with ``channels_last`` -> (B, D', h, w).
    """
    maps = maps if channels_last else maps.permute(0, 2, 3, 1)  # (B, h, w, D)
    places = maps.reshape(-1, 1, 1, maps.shape[3])  # (B * h * w, 1, 1, D)
    output = head(places if channels_last else places.permute(0, 3, 1, 2)).flatten(1)  # (B * h * w, D')
    return output.unflatten(0, maps.shape[:3]).permute(0, 3, 1, 2)


def takes_mask(network: nn.Module) -> bool:
    """Whether ``masked_tokens`` knows the parts of this vision transformer."""
    if isinstance(network, models.VisionTransformer):
        return True
    return all(hasattr(network, part) for part in _VIT_PARTS) and getattr(network, "rope", None) is None


def masked_tokens(
    network: nn.Module, images: Tensor, mask: Tensor | None, mask_token: Tensor | None
) -> tuple[Tensor, int]:
    """The tokens (B, P + T, D) of a vision transformer and the number P of prefix tokens; see ``feature_tokens``."""
    if isinstance(network, models.VisionTransformer):
        patches, prefix, encoder = network._process_input(images), 1, network.encoder  # (B, T, D)
        patches = _replace_hidden(patches, mask, mask_token)
        tokens = torch.cat([network.class_token.expand(len(images), -1, -1), patches], 1)  # (B, 1 + T, D)
        tokens = _drop_hidden(tokens + encoder.pos_embedding, prefix, mask, mask_token)
        return encoder.ln(encoder.layers(encoder.dropout(tokens))), prefix
    prefix = network.num_prefix_tokens
    if mask is None:
        tokens = network.forward_features(images)
    else:
        tokens = network._pos_embed(_replace_hidden(network.patch_embed(images), mask, mask_token))  # (B, P + T, D)
        tokens = _drop_hidden(tokens, prefix, mask, mask_token)
        tokens = network.norm(network.blocks(network.norm_pre(tokens)))
    return network.fc_norm(tokens) if hasattr(network, "fc_norm") else tokens, prefix  # where timm norms after pooling


def _replace_hidden(patches: Tensor, mask: Tensor | None, mask_token: Tensor | None) -> Tensor:
    """Embeddings of patches, (B, T, D) or (B, h, w, D), with a token in place of the hidden ones."""
    if mask is None:
        return patches
    expected = (len(patches), math.prod(patches.shape[1:-1]))
    if tuple(mask.shape) != expected or mask.dtype != torch.bool:
        raise ValueError(
            f"the mask has shape {tuple(mask.shape)} and type {mask.dtype}, but the images have {expected[1]} patches; pass "
            f"{expected} bool, true where a patch is hidden."
        )
    if mask_token is None:
        return patches
    hidden = mask.to(patches.device, non_blocking=True).view(*patches.shape[:-1], 1)
    return torch.where(hidden, mask_token.to(patches.dtype), patches)


def _drop_hidden(tokens: Tensor, prefix: int, mask: Tensor | None, mask_token: Tensor | None) -> Tensor:
    """The prefix tokens and those of visible patches (B, P + V, D)."""
    if mask is None or mask_token is not None:
        return tokens
    visible = (~mask).sum(1)
    if (visible != visible[0]).any():
        raise ValueError(
            f"the mask hides between {mask.shape[1] - visible.max()} and {mask.shape[1] - visible.min()} patches of an image; "
            "hide the same number in each image, or pass a mask_token."
        )
    rows = (~mask).nonzero()[:, 1].view(len(mask), -1) + prefix  # (B, V)
    rows = torch.cat([torch.arange(prefix, device=rows.device).expand(len(mask), -1), rows], 1)
    rows = rows.to(tokens.device, non_blocking=True)
    return tokens.gather(1, rows[:, :, None].expand(-1, -1, tokens.shape[2]))


def token_grid(count: int, size: Sequence[int], prefix: int | None) -> tuple[int, tuple[int, int]]:
    """How tokens lie in an image: the number of prefix tokens, and the grid (h, w) of the others, row by row.

    Args:
        count: tokens, prefix tokens included.
        size: (H, W) of the images; patches are square.
        prefix: number of prefix tokens; None if unknown: 0 if all tokens fill a grid, 1 if all but one do.
    """
    height, width = size
    for before in (0, 1) if prefix is None else (prefix,):
        patches = count - before
        rows = round(math.sqrt(patches * height / width))
        if rows and patches % rows == 0 and abs(rows * width / height - patches // rows) < 1:
            return before, (rows, patches // rows)
    return prefix or 0, (count - (prefix or 0), 1)
