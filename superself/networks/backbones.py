"""build_backbone: from None, a name or a module to a backbone that fits the images."""

from __future__ import annotations

import functools
from difflib import get_close_matches

import torchvision
from torch import nn

from superself.networks.combined import feature_width
from superself.networks.efficient import EfficientFeatures

SMALL_SIDE = 64  # pixels; images with a side up to this get a stem that does not shrink them


def build_backbone(backbone: str | nn.Module | None = None, shape: tuple[int, int, int] = (3, 225, 225)) -> nn.Module:
    """Gives a backbone for images of the given shape; a named one has random weights.

    The first convolution takes C channels, and the classifier is removed. Where a side has 64 pixels or fewer, the
    first convolution is 3 x 3 with stride 1 and no pooling follows; only networks that are built for one image size
    (vision transformers) keep theirs. Running averages of batch norm move by 0.1 a step or more. ``description`` says in
    words what was chosen, ``rebuild()`` gives a fresh random one. A module is returned as it is, without either.

    Args:
        backbone: None for EfficientFeatures; a torchvision name such as "resnet18"; a timm name such as
            "timm:vit_small_patch16_224"; or a module.
        shape: (C, H, W) of the images.

    Raises:
        TypeError: if ``backbone`` is something else.
        ValueError: if the name is unknown or the network cannot take such images.
        ImportError: if a timm name is given and timm is not installed.
    """
    if isinstance(backbone, nn.Module):
        return backbone
    channels, height, width = shape
    if backbone is None:
        source = "efficientnet-b0 (efficientnet-pytorch)"
        network, any_size = EfficientFeatures(channels), True
    elif not isinstance(backbone, str):
        raise TypeError(f"backbone={backbone!r} is no backbone; pass None, a name or an instance of nn.Module.")
    elif backbone.startswith("timm:"):
        name = backbone.removeprefix("timm:")
        source = f"{name} (timm)"
        network, any_size = _from_timm(name, shape)
    else:
        source = f"{backbone} (torchvision)"
        network, any_size = _from_torchvision(backbone, shape)

    small = any_size and min(height, width) <= SMALL_SIDE
    _adapt_stem(network, channels, small)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # some move by 0.01 a step, which leaves short runs with wrong averages
            module.momentum = max(module.momentum, 0.1)
    stem = f"3 x 3 stem for images of {height} x {width}, " if small else ""
    plural = "s" if channels > 1 else ""
    network.description = f"{source}, {channels} channel{plural}, {stem}{feature_width(network, shape)} features"
    network.rebuild = functools.partial(build_backbone, backbone, shape)
    return network


def _from_torchvision(name: str, shape: tuple[int, int, int]) -> tuple[nn.Module, bool]:
    """Gives the network without its classifier, and whether it takes images of any size."""
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise ValueError(_unknown_name(name, names, "a name of torchvision.models.list_models(), 'timm:NAME'"))
    options = {}
    if name.startswith("vit_"):
        options["image_size"] = _vit_side(name, *shape[1:])
    elif name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}  # auxiliary classifiers would make the output a tuple
    network = torchvision.models.get_model(name, weights=None, **options)
    layers = [layer for layer, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    _replace(network, layers[-1], nn.Identity())  # the last layer is the classifier in every family
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # by default torchvision has dropout in classifiers only
    return network, not name.startswith("vit_")


def _vit_side(name: str, height: int, width: int) -> int:
    patch = int(name.rsplit("_", 1)[1])  # "vit_b_16" -> 16
    if height != width or height % patch:
        raise ValueError(
            f"{name} takes square images with a side that {patch} divides, not {height} x {width}; "
            f"pass image_size={max(height // patch, 1) * patch} or another backbone."
        )
    return height


def _from_timm(name: str, shape: tuple[int, int, int]) -> tuple[nn.Module, bool]:
    """Gives the network without its classifier, and whether it takes images of any size."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"'timm:{name}' needs timm, which is not installed; pip install superself[timm].") from error
    if not timm.is_model(name):
        raise ValueError(_unknown_name(name, timm.list_models(), "a name of timm.list_models()"))
    config = timm.get_pretrained_cfg(name)
    any_size = config is None or not config.fixed_input_size
    options = {} if any_size else {"img_size": shape[1:]}
    return timm.create_model(name, in_chans=shape[0], num_classes=0, **options), any_size


def _unknown_name(name: str, names: list[str], needed: str) -> str:
    nearest = get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f" (nearest: {', '.join(nearest)})" if nearest else ""
    return f"No backbone is called {name!r}{hint}; pass {needed} or a module."


def _adapt_stem(network: nn.Module, channels: int, small: bool) -> None:
    """Makes the first convolution take the channels and, for small images, 3 x 3 with stride 1 and no pooling."""
    name, conv = next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    if conv.in_channels == channels and not small:
        return
    size, stride, padding = (3, 1, 1) if small else (conv.kernel_size, conv.stride, conv.padding)
    stem = nn.Conv2d(channels, conv.out_channels, size, stride, padding, bias=conv.bias is not None)
    _replace(network, name, stem)
    pools = [name for name, module in network.named_modules() if isinstance(module, nn.MaxPool2d)]
    if small and len(pools) == 1:  # the stem's; networks with several, such as VGG, have them in the body
        _replace(network, pools[0], nn.Identity())


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, module)
