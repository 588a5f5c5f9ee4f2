"""build_backbone: a backbone that fits the images, from None, a name or a module."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from superself.basics.validate import require_choice
from superself.networks.alexnet import AlexNetMaps
from superself.networks.efficient import EfficientFeatures
from superself.networks.features import feature_width
from superself.networks.norms import StandardizedConv2d, use_layer_norm
from superself.networks.pretrained import load_weights, pretrained_weights_wanted
from superself.networks.resnets import RESNETS, ResNet

OWN = ("alexnet_bn", "resnet9", *(name for name in RESNETS if name.startswith("ws_")))  # not torchvision's or timm's
SMALL_SIDE = 64  # pixels; images with a side up to this get a stem that does not shrink them


@dataclass(frozen=True)
class BackboneSpec:
    """How ``build_backbone`` made a network; stored as its attribute ``spec``. ``str(spec)`` describes it in words.

    Args:
        name: None for EfficientFeatures, a name of torchvision's or superself's, or "timm:NAME"; without weights.
        shape: (C, H, W) of the images it was built for.
        norm: "batch", or "layer" where layer norm has replaced batch norm.
        small_stem: whether the first convolution was replaced by a 3 x 3 one for small images.
        width: D of its pooled features.
        weights: where the weights that it started from came from; None if they were random.
    """

    name: str | None
    shape: tuple[int, int, int]
    norm: str
    small_stem: bool
    width: int
    weights: str | None = None

    def build(self) -> nn.Module:
        """A network like the first one, with random weights even where the first one's were pretrained."""
        return build_backbone(self.name, self.shape, self.norm)

    @property
    def library(self) -> str:
        """Whose network it is: "torchvision", "timm", "superself" or "efficientnet-pytorch"."""
        if self.name is None:
            return "efficientnet-pytorch"
        if _is_own(*_split(self.name)[:2]):
            return "superself"
        return "timm" if self.name.startswith("timm:") else "torchvision"

    def __str__(self) -> str:
        name = self.name or "efficientnet-b0"
        channels, height, width = self.shape
        parts = [
            f"{name.removeprefix('timm:')} ({self.library})",
            f"{channels} channel{'s' if channels > 1 else ''}",
            f"3 x 3 stem for images of {height} x {width}" if self.small_stem else "",
            f"{self.width} features",
            "layer norm" if self.norm == "layer" else "",
            f"from the weights of {self.weights}" if self.weights else "",
        ]
        return ", ".join(filter(None, parts))


def build_backbone(
    backbone: str | nn.Module | None = None,
    shape: tuple[int, int, int] = (3, 225, 225),
    norm: str = "batch",
    weights: str | Path | None = None,
) -> nn.Module:
    """Builds a backbone for images of the given shape; a module is returned unchanged.

    The first convolution takes C channels, and the classifier is removed. If a side of the images has at most 64 pixels, the
    first convolution becomes 3 x 3 with stride 1 and no pooling follows; only networks that are built for one image size
    (vision transformers) keep theirs. Running averages of batch norm move by 0.1 a step or more. ``describe(backbone)`` says
    what was chosen, ``fresh_copy(backbone)`` gives the same network with other random weights.

    Weights are random unless some are asked for, as ``weights=`` or in the name: "resnet18@imagenet", "resnet18@FILE",
    "timm:vit_tiny_patch16_224@imagenet", "@FILE" for EfficientFeatures. ``load_weights`` says how they are adapted to the
    images; what matched is kept as ``backbone.loaded_weights``. ``load`` does not need them again; to resume a run,
    pass the backbone without them, or keep the file.

    Args:
        backbone: None for EfficientFeatures; a torchvision name such as "resnet18"; "resnet9", "ws_resnet18" (standardised
            weights and group norm, 18 to 152), "alexnet_bn"; any ResNet with a width, such as "resnet18:width=0.25"; a timm
            name such as "timm:vit_small_patch16_224"; or a module.
        shape: (C, H, W) of the images.
        norm: "batch" keeps the norm layers; "layer" replaces each 2d batch norm by a layer norm, in a module in place.
        weights: to start from: "imagenet", another name of the library's weights, or a file; see ``load_weights``.

    Raises:
        TypeError: if ``backbone`` is something else.
        ValueError: if a name is unknown, the network cannot take such images, or weights are those of another network.
        ImportError: if a timm name is given and timm is not installed.
        OSError: if weights cannot be read or downloaded.
    """
    require_choice("norm", norm, ("batch", "layer"))
    if isinstance(backbone, nn.Module):
        network = use_layer_norm(backbone) if norm == "layer" else backbone
        if weights is not None and pretrained_weights_wanted():
            load_weights(network, weights)
        return network
    if backbone is not None and not isinstance(backbone, str):
        raise TypeError(f"backbone={backbone!r} is not a backbone; pass None, a name or an instance of nn.Module.")
    if backbone == "":
        raise ValueError("backbone='' is not a name; pass None for EfficientFeatures, or a name such as 'resnet18'.")
    channels, height, width = shape
    name, wide, in_name = _split(backbone or "")
    network, any_size = _make(name, wide, shape)

    small = any_size and min(height, width) <= SMALL_SIDE
    _adapt_stem(network, channels, small)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # some move by 0.01 a step, which leaves short runs with wrong averages
            module.momentum = max(module.momentum, 0.1)
    if norm == "layer":
        use_layer_norm(network)
    whole_name = (backbone or "").partition("@")[0] or None
    weights = weights if weights is not None else in_name
    features = feature_width(network, shape)
    network.spec = BackboneSpec(
        whole_name, tuple(shape), norm, small, features, None if weights is None else str(weights)
    )
    if weights is not None and pretrained_weights_wanted():
        network.loaded_weights = load_weights(network, weights, whole_name)
    return network


def _split(text: str) -> tuple[str, float | None, str | None]:
    """The name of a network, its width and its weights, from "NAME:width=NUMBER@WEIGHTS"."""
    name, at, weights = text.partition("@")  # no name of a network has one
    if at and not weights:
        raise ValueError(f'backbone={text!r} names no weights; pass for example "{name}@imagenet" or "{name}@FILE".')
    if name.startswith("timm:") or ":" not in name:
        return name, None, weights or None
    name, _, option = name.partition(":")
    key, _, value = option.partition("=")
    try:
        width = float(value) if key == "width" else 0.0
    except ValueError:
        width = 0.0
    if not 0 < width < float("inf"):
        raise ValueError(
            f'backbone={text!r} has the option {option!r}, which is not a width; pass for example "{name}:width=0.5".'
        )
    if name not in RESNETS:
        raise ValueError(
            f"backbone={text!r} has a width, and only ResNets have one ({', '.join(RESNETS)}); leave it out."
        )
    return name, width, weights or None


def _is_own(name: str, width: float | None) -> bool:
    return name in OWN or width is not None


def is_backbone_name(text: str) -> bool:
    """Whether ``text`` is, apart from weights after an "@", the name of a network that ``build_backbone`` can make."""
    name = text.partition("@")[0].partition(":")[0]
    return name == "timm" and ":" in text or name in RESNETS or name in OWN or name in torchvision.models.list_models()


def _make(name: str, width: float | None, shape: tuple[int, int, int]) -> tuple[nn.Module, bool]:
    """Gives the network of a name without its classifier, and whether it accepts images of any size."""
    if not name:  # None, or "@FILE"
        return EfficientFeatures(shape[0]), True
    if name == "alexnet_bn":
        return AlexNetMaps(shape[0]), True
    if _is_own(name, width):
        return ResNet(*RESNETS[name], width=1.0 if width is None else width, in_channels=shape[0]), True
    if name.startswith("timm:"):
        return _from_timm(name.removeprefix("timm:"), shape)
    return _from_torchvision(name, shape)


def require_trainable(name: str, network: Any) -> None:
    """Checks that a network a user passed can be built into a supervisor.

    Args:
        name: of the argument.
        network: what was passed.

    Raises:
        TypeError: if it is not an instance of nn.Module, or wrapped for several devices or compiled.
        ValueError: if parameters have no values (device "meta") or are not in float32.
    """
    if not isinstance(network, nn.Module):
        kind = f"the class {network.__name__}" if isinstance(network, type) else f"a {type(network).__name__}"
        raise TypeError(f"{name} is {kind}; pass an instance of nn.Module.")
    if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise TypeError(
            f"{name} is wrapped in {type(network).__name__}; pass {name}.module, and devices= to supervise(), which wraps what "
            "is trained."
        )
    if hasattr(network, "_orig_mod"):
        raise TypeError(
            f"{name} is compiled by torch.compile, which renames its weights; pass the network itself ({name}._orig_mod), and "
            "compile=True to supervise()."
        )
    for parameter, value in network.named_parameters():
        if value.is_meta:
            raise ValueError(
                f'the parameter {parameter} of {name} is on the device "meta" and has no values; build the network outside '
                'torch.device("meta"), or call to_empty(device="cpu") and initialise it.'
            )
        if value.is_floating_point() and value.dtype != torch.float32:
            dtype = str(value.dtype).removeprefix("torch.")
            raise ValueError(
                f"the parameter {parameter} of {name} is in {dtype}, and weights are trained in float32; call {name}.float() and "
                "choose the precision of computations with precision= of supervise()."
            )


def _from_torchvision(name: str, shape: tuple[int, int, int]) -> tuple[nn.Module, bool]:
    """Gives the network without its classifier, and whether it accepts images of any size."""
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        needed = f"a name of torchvision.models.list_models(), {', '.join(OWN[:3])}, 'timm:NAME'"
        raise ValueError(_unknown_name(name, [*names, *OWN], needed))
    network = torchvision.models.get_model(name, weights=None, **torchvision_options(name, shape))
    layers = [layer for layer, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    _replace(network, layers[-1], nn.Identity())  # the last layer is the classifier in every family
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # by default torchvision has dropout in classifiers only
    return network, not name.startswith("vit_")


def torchvision_options(name: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """What torchvision's constructor of a network needs besides its name for images (C, H, W)."""
    if name.startswith("vit_"):
        return {"image_size": _vit_side(name, *shape[1:])}
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}  # auxiliary classifiers would make the output a tuple
    return {}


def _vit_side(name: str, height: int, width: int) -> int:
    patch = int(name.rsplit("_", 1)[1])  # "vit_b_16" -> 16
    if height != width or height % patch:
        raise ValueError(
            f"{name} takes square images whose side is a multiple of {patch}, not {height} x {width}; "
            f"pass image_size={max(height // patch, 1) * patch} or another backbone."
        )
    return height


def _from_timm(name: str, shape: tuple[int, int, int]) -> tuple[nn.Module, bool]:
    """Gives the network without its classifier, and whether it accepts images of any size."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"'timm:{name}' needs timm, which is not installed; pip install superself[timm].") from error
    if not timm.is_model(name):
        raise ValueError(_unknown_name(name, timm.list_models(), "a name of timm.list_models()"))
    options = timm_options(name, shape)
    return timm.create_model(name, **options), "img_size" not in options


def timm_options(name: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """What ``timm.create_model`` needs besides a name for images (C, H, W), without classifier."""
    import timm

    config = timm.get_pretrained_cfg(name)
    any_size = config is None or not config.fixed_input_size
    return {"in_chans": shape[0], "num_classes": 0, **({} if any_size else {"img_size": tuple(shape[1:])})}


def _unknown_name(name: str, names: list[str], needed: str) -> str:
    nearest = get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f" (nearest: {', '.join(nearest)})" if nearest else ""
    return f"No backbone is called {name!r}{hint}; pass {needed} or a module."


def _adapt_stem(network: nn.Module, channels: int, small: bool) -> None:
    """Adapts the first convolution to the channels and, for small images, makes it 3 x 3 with stride 1 and no pooling."""
    name, conv = next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    if conv.in_channels == channels and not small:
        return
    size, stride, padding = (3, 1, 1) if small else (conv.kernel_size, conv.stride, conv.padding)
    kind = StandardizedConv2d if isinstance(conv, StandardizedConv2d) else nn.Conv2d
    stem = kind(channels, conv.out_channels, size, stride, padding, bias=conv.bias is not None)
    _replace(network, name, stem)
    pools = [name for name, module in network.named_modules() if isinstance(module, nn.MaxPool2d)]
    if small and len(pools) == 1:  # the stem's; networks with several, such as VGG, have them in the body
        _replace(network, pools[0], nn.Identity())


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, module)
