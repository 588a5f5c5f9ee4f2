"""What a backbone provides: pooled features, feature maps, tokens, their sizes, a description and a fresh copy.

Algorithms ask here and treat no backbone specially. Supported are EfficientFeatures, the classification networks of
torchvision and timm, and any module that returns (B, D), (B, D, h, w) or (B, tokens, D), or a tuple, list or dict with such
a tensor in it: of a dict the entry "features", "x_norm_clstoken", "last_hidden_state" or "out", in this order, otherwise its
first tensor; of a tuple or list the first tensor.

A module may answer for itself with these methods, which take precedence:
    feature_maps(images) -> (B, D, h, w)
    feature_tokens(images, mask, mask_token) -> (B, P + T, D), with P in an attribute ``num_prefix_tokens`` (default 0)
    describe() -> str
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from superself.networks.adapters import (
    apply_at_each_place,
    has_torchvision_maps,
    masked_tokens,
    takes_mask,
    token_grid,
    torchvision_head,
    torchvision_maps,
)
from superself.networks.modes import device_of

_KEYS = ("features", "x_norm_clstoken", "last_hidden_state", "out")
_TOKEN_KEYS = ("x_norm_patchtokens", *_KEYS)
_OUTPUTS = "a floating-point tensor (B, D), (B, D, h, w) or (B, tokens, D), or a tuple or dict with one,"


def pooled_features(backbone: nn.Module, images: Tensor) -> Tensor:
    """The features of images, pooled to one vector each: what is trained, measured and exported.

    Shape:
        images (B, C, H, W) -> (B, D).
    """
    return pool_features(backbone(images))


def pool_features(output: Any) -> Tensor:
    """Turns what a backbone returned into features: maps and tokens are averaged.

    Shape:
        (B, D), (B, D, h, w) or (B, tokens, D), or a tuple, list or dict with one of these -> (B, D).

    Raises:
        ValueError: if the output is anything else.
    """
    output = _tensor_of(output, _KEYS)
    if output.ndim == 4:
        return output.mean(dim=(2, 3))
    if output.ndim == 3:
        return output.mean(dim=1)
    return output


def feature_maps(backbone: nn.Module, images: Tensor) -> Tensor:
    """The features of images at each place, before they are pooled.

    A convolutional network gives its maps before global pooling; layers that follow the pooling are applied at each place,
    so that D is that of the pooled features and every weight is trained. A vision transformer gives its patch tokens as a
    grid, without class tokens; tokens that fill no grid of the image's proportions become a column (T, 1). A vector becomes a
    1 x 1 map.

    Shape:
        images (B, C, H, W) -> (B, D, h, w).
    """
    if callable(getattr(backbone, "feature_maps", None)):
        return backbone.feature_maps(images)
    if has_torchvision_maps(backbone):
        return torchvision_head(backbone, torchvision_maps(backbone, images))
    output = _unpooled(backbone, images)
    if output.ndim == 3:
        prefix, grid = token_grid(output.shape[1], images.shape[2:], getattr(backbone, "num_prefix_tokens", None))
        return output[:, prefix:].transpose(1, 2).unflatten(2, grid)
    if output.ndim == 2:
        return output[:, :, None, None]
    if hasattr(backbone, "forward_head"):  # timm
        channels_last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        return apply_at_each_place(backbone.forward_head, output, channels_last)
    return output


def feature_tokens(
    backbone: nn.Module,
    images: Tensor,
    mask: Tensor | None = None,
    mask_token: Tensor | None = None,
    *,
    keep_prefix: bool = False,
) -> Tensor:
    """The patch tokens of images, row by row, from a network that has tokens.

    Args:
        backbone: a vision transformer of torchvision or timm, or a module that returns (B, tokens, D).
        images: (B, C, H, W).
        mask: (B, T) bool, true where a patch is hidden from the network; None shows all patches. Only vision transformers
            take one. A mask on the CPU costs no synchronisation with the accelerator.
        mask_token: (D,) takes the place of the embeddings of hidden patches, before positions are added (as in SimMIM and
            iBOT). None leaves hidden patches out (as in MAE): the V visible ones are returned, in order, and each image must
            hide the same number.
        keep_prefix: return class and register tokens too, in front.

    Shape:
        images (B, C, H, W) -> (B, T, D), or (B, V, D) without hidden patches.

    Raises:
        ValueError: if the network has no tokens or takes no mask, or the mask does not fit.
    """
    name = type(backbone).__name__
    if callable(getattr(backbone, "feature_tokens", None)):
        tokens = backbone.feature_tokens(images, mask, mask_token)
        prefix = getattr(backbone, "num_prefix_tokens", 0)
    elif takes_mask(backbone):
        tokens, prefix = masked_tokens(backbone, images, mask, mask_token)
    elif mask is not None:
        raise ValueError(
            f"{name} cannot hide patches from itself; leave out the mask, or pass a vision transformer such as 'vit_b_16' or "
            "'timm:vit_tiny_patch16_224', or a module with a method feature_tokens(images, mask, mask_token)."
        )
    else:
        tokens = None if has_torchvision_maps(backbone) else _unpooled(backbone, images)
        if tokens is None or tokens.ndim != 3:
            raise ValueError(
                f"{name} has no tokens; use feature_maps(), or pass a vision transformer such as 'vit_b_16' or "
                "'timm:vit_tiny_patch16_224', or a module that returns (B, tokens, D)."
            )
        prefix, _ = token_grid(tokens.shape[1], images.shape[2:], getattr(backbone, "num_prefix_tokens", None))
    return tokens if keep_prefix else tokens[:, prefix:]


def feature_width(backbone: nn.Module, shape: tuple[int, int, int]) -> int:
    """Finds the width D of a backbone's pooled features by running two images of zeros through it.

    The run is in evaluation mode; the mode of each submodule and the random state are restored afterwards.

    Args:
        backbone: a backbone, or a CombinedNet whose output has the width in question.
        shape: (C, H, W) of the images.

    Raises:
        ValueError: if the backbone cannot take such images, or its output cannot be used.
    """
    return pool_features(_run_on_zeros(backbone, backbone, shape)).shape[1]


def map_shape(backbone: nn.Module, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Finds the shape (D, h, w) of a backbone's ``feature_maps`` as ``feature_width`` finds the width."""
    return tuple(_run_on_zeros(lambda images: feature_maps(backbone, images), backbone, shape).shape[1:])


def tile_width(backbone: nn.Module, shape: tuple[int, int, int], side: int, remedy: str) -> int:
    """``feature_width`` for square tiles of images, for a backbone that takes the images.

    Args:
        backbone: a backbone that was built for the images.
        shape: (C, H, W) of the images.
        side: of a tile.
        remedy: what the user may pass to get tiles that the backbone takes.

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


def describe(backbone: nn.Module, shape: tuple[int, int, int] | None = None) -> str:
    """A backbone in words: how ``build_backbone`` built it, otherwise its class.

    Args:
        backbone: any backbone.
        shape: (C, H, W) of the images, to add the width of the features of a custom module.
    """
    if callable(getattr(backbone, "describe", None)):
        return backbone.describe()
    spec = _spec_of(backbone)
    if spec is not None:
        return str(spec)
    name = type(backbone).__name__
    return name if shape is None else f"{name}, {feature_width(backbone, shape)} features"


def fresh_copy(backbone: nn.Module) -> nn.Module:
    """A copy of a backbone with freshly initialised weights, on the same device and in the same mode.

    Networks that ``build_backbone`` made, also inside another module, get the weights of a newly built one, random even where
    the first one's were pretrained: the untrained network is what training is compared with. Every other module is reset by
    its ``reset_parameters()``. Weights are drawn on the CPU, so that a seed gives the same copy on every device.

    Raises:
        ValueError: if a module with parameters has no ``reset_parameters()``; it lists the parameters.
    """
    network = copy.deepcopy(backbone).cpu()
    kept = _reset(network, "")
    if kept:
        raise ValueError(
            f"the parameters {', '.join(kept)} cannot be reset, because their modules have no reset_parameters(); define "
            "it, or initialise a second network yourself."
        )
    return network.to(device_of(backbone))


def _reset(module: nn.Module, name: str) -> list[str]:
    """Resets a module and those inside; returns the names of the parameters that stay as they are."""
    spec, kept = _spec_of(module), []
    if spec is not None:
        built = spec.build()
        if _shapes(built) == _shapes(module):  # otherwise it was changed after it was built
            module.load_state_dict(built.state_dict())
            module.spec = built.spec  # which names no pretrained weights
            vars(module).pop("loaded_weights", None)
            return kept
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if reset is not None:
        reset()
    else:
        kept += [f"{name}{parameter}" for parameter, _ in module.named_parameters(recurse=False)]
    return kept + [left for key, child in module.named_children() for left in _reset(child, f"{name}{key}.")]


def _spec_of(module: nn.Module) -> Any:
    """The record of how ``build_backbone`` made a network, if it did."""
    spec = getattr(module, "spec", None)
    return spec if callable(getattr(spec, "build", None)) else None


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


def _tensor_of(output: Any, keys: tuple[str, ...]) -> Tensor:
    """The tensor with the features in what a backbone returned."""
    given = output
    if isinstance(output, dict):
        output = next((output[key] for key in keys if isinstance(output.get(key), Tensor)), list(output.values()))
    if isinstance(output, (tuple, list)):
        output = next((part for part in output if isinstance(part, Tensor)), None)
    if not isinstance(output, Tensor):
        inside = " without a tensor" if isinstance(given, (dict, tuple, list)) else ""
        raise ValueError(
            f"The backbone returned a {type(given).__name__}{inside}, but {_OUTPUTS} is needed; "
            "wrap the backbone in a module that returns the tensor with the features."
        )
    if output.ndim not in (2, 3, 4) or not output.is_floating_point():
        raise ValueError(
            f"The backbone returned a tensor of shape {tuple(output.shape)} and type {output.dtype}, "
            f"but {_OUTPUTS} is needed; change what its forward() returns."
        )
    return output


def _unpooled(backbone: nn.Module, images: Tensor) -> Tensor:
    """Maps (B, D, h, w) or tokens (B, tokens, D) where a network has some, otherwise what it returns."""
    if takes_mask(backbone):
        return masked_tokens(backbone, images, None, None)[0]
    forward = getattr(backbone, "forward_features", backbone)  # of timm and of DINOv2
    output = _tensor_of(forward(images), _TOKEN_KEYS)
    return backbone.fc_norm(output) if output.ndim == 3 and hasattr(backbone, "fc_norm") else output


@torch.no_grad()
def _run_on_zeros(function: Callable[[Tensor], Any], backbone: nn.Module, shape: tuple[int, int, int]) -> Tensor:
    """What a function of images gives for two of zeros, with the backbone in evaluation mode."""
    reference = next(backbone.parameters(), torch.zeros(()))
    images = torch.zeros(2, *shape, device=reference.device, dtype=reference.dtype)
    modes = [(module, module.training) for module in backbone.modules()]
    try:
        backbone.eval()
        with torch.random.fork_rng(devices=[reference.device] if reference.is_cuda else []):
            output = function(images)
    except Exception as error:
        raise ValueError(
            f"{type(backbone).__name__} failed on a batch of zeros of shape {tuple(images.shape)} ({error}); "
            f"pass a backbone that takes {shape[0]} channels and images of {shape[1]} x {shape[2]}, or "
            "another image_size."
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    output = _tensor_of(output, _KEYS)
    if len(output) != len(images):
        raise ValueError(
            f"{type(backbone).__name__} returned shape {tuple(output.shape)} for {len(images)} images, but "
            "the first dimension must be the image; change what its forward() returns."
        )
    return output
