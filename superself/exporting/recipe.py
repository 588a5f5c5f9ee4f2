"""Recipes: the lines of Python with which torchvision's or timm's own network takes an exported file, without superself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from superself.basics.random import preserve_random_state
from superself.data import Preprocessing
from superself.networks import BackboneSpec
from superself.networks.backbones import timm_options, torchvision_options


def library_recipe(backbone: nn.Module, preprocessing: Preprocessing | None, path: Path) -> str | None:
    """The code that makes the library's network, edits it as ``build_backbone`` did, and loads the file; None if none can.

    It defines ``network`` and, where the preprocessing is known, ``preprocess(images)`` for images as they are in the files.

    Args:
        backbone: that is exported.
        preprocessing: what it expects.
        path: of the file; only its name is used.
    """
    spec = getattr(backbone, "spec", None)
    if not isinstance(spec, BackboneSpec) or spec.norm != "batch" or spec.library not in ("torchvision", "timm"):
        return None
    edits = library_edits(backbone, spec)
    if edits is None:
        return None
    if path.suffix == ".safetensors":
        imports, load = ["from safetensors.torch import load_file"], f"load_file({path.name!r})"
    else:
        imports, load = [], f'torch.load({path.name!r}, map_location="cpu", weights_only=True)'
    lines = ["import torch", f"import {spec.library}", *imports, "", f"network = {_constructor(spec)}", *edits]
    lines += [f"network.load_state_dict({load})", "network.eval()"]
    lines += [] if preprocessing is None else ["", *_preprocess(preprocessing)]
    return "\n".join(lines) + "\n"


def library_edits(backbone: nn.Module, spec: BackboneSpec) -> list[str] | None:
    """The assignments that turn the library's network into ``backbone``: stem, pooling, classifier; None if others differ."""
    with preserve_random_state(), torch.device("meta"):
        plain = _plain(spec)
    edits, replaced = [], []
    for name, module in plain.named_modules():
        if any(name.startswith(f"{parent}.") for parent in replaced):
            continue
        own = backbone.get_submodule(name)
        if type(own) is type(module) and _geometry(own) == _geometry(module):
            continue
        if isinstance(own, nn.Identity):
            edits.append(f"{_access(name)} = torch.nn.Identity(){_hint(module)}")
        elif type(own) is nn.Conv2d:
            edits.append(f"{_access(name)} = {_conv(own)}")
        else:
            return None
        replaced.append(name)
    return edits


def _hint(removed: nn.Module) -> str:
    if not isinstance(removed, nn.Linear):
        return ""
    return f"  # for a classifier: torch.nn.Linear({removed.in_features}, classes) here, and strict=False below"


def _plain(spec: BackboneSpec) -> nn.Module:
    if spec.library == "timm":
        import timm

        name = spec.name.removeprefix("timm:")
        return timm.create_model(name, **timm_options(name, spec.shape))
    return torchvision.models.get_model(spec.name, weights=None, **torchvision_options(spec.name, spec.shape))


def _constructor(spec: BackboneSpec) -> str:
    if spec.library == "timm":
        name = spec.name.removeprefix("timm:")
        options = {"num_classes": 0, **timm_options(name, spec.shape)}
        return f"timm.create_model({name!r}, {_arguments(options)})"
    return f"torchvision.models.{spec.name}({_arguments(torchvision_options(spec.name, spec.shape))})"


def _arguments(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in options.items())


def _access(name: str) -> str:
    """The expression for a submodule: "features.0.conv" -> "network.features[0].conv"."""
    return "network" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in name.split("."))


def _geometry(module: nn.Module) -> tuple[Any, ...]:
    if isinstance(module, nn.Conv2d):
        return module.weight.shape, module.stride, module.padding, module.bias is None
    return (module.weight.shape,) if isinstance(module, nn.Linear) else ()


def _conv(conv: nn.Conv2d) -> str:
    size, stride, padding = (
        value[0] if value[0] == value[1] else tuple(value) for value in (conv.kernel_size, conv.stride, conv.padding)
    )
    return (
        f"torch.nn.Conv2d({conv.in_channels}, {conv.out_channels}, {size}, stride={stride}, padding={padding}, "
        f"bias={conv.bias is not None})"
    )


def _preprocess(preprocessing: Preprocessing) -> list[str]:
    """A function from images as they are in the files to what the network takes."""
    if preprocessing.sobel:
        return ["# The network takes Sobel derivatives; superself.load_backbone(...).preprocessing computes them."]
    reading = preprocessing.reading
    scales = {"uint8": 255.0, "uint16": 65535.0}
    scale = scales.get(preprocessing.dtype, 1.0) if reading is None or reading.norm is None else reading.norm
    height, width = preprocessing.shape[1:]
    lines = [
        f"def preprocess(images):  # (B, C, H, W) {preprocessing.dtype}, trained at {height} x {width} pixels",
        f"    mean, std = {list(preprocessing.mean)!r}, {list(preprocessing.std)!r}",
    ]
    if reading is not None and reading.single_channel:
        lines.append(f"    images = images.expand(-1, {reading.num_channels or 3}, -1, -1)")
    elif reading is not None and reading.num_channels is not None:
        lines.append(f"    images = images[:, :{reading.num_channels}]")
    image = "images.float()" if scale == 1 else f"images.float() / {scale!r}"
    lines.append(f"    return ({image} - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)")
    return lines
