"""The manifest of an exported file: which network it holds, what the network expects, and how to check that it is the same."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from superself.basics.random import preserve_random_state
from superself.data import Preprocessing
from superself.exporting.checksum import embedding_checksum, features_of_batch, preprocessed_batch
from superself.networks import BackboneSpec, LabHalves, build_backbone, describe
from superself.networks.pretrained import without_pretrained_weights
from superself.training.checkpoint import first_nonfinite
from superself.version import __version__

FORMAT = 1  # of the manifest
KEY = "superself"  # of the manifest in a file's metadata
DEFAULT = "efficientnet-b0"  # the architecture that ``build_backbone`` calls None


def make_manifest(backbone: nn.Module, preprocessing: Preprocessing | None, file_format: str) -> dict[str, Any]:
    """The manifest of a backbone, of plain values.

    Args:
        backbone: that is exported.
        preprocessing: what it expects; None if that is unknown.
        file_format: "state_dict", "safetensors", "torchscript" or "onnx".
    Raises:
        ValueError: if a weight or a feature is not finite.
    """
    architecture, arguments = architecture_of(backbone)
    shape = input_shape(backbone, preprocessing)
    features = None if shape is None else features_of_batch(backbone, preprocessed_batch(preprocessing, shape))
    broken = first_nonfinite(
        {
            **dict(backbone.named_parameters()),
            **({} if features is None else {"the features of a test image": features}),
        }
    )
    if broken is not None:
        raise ValueError(f"{broken} is not finite, so the run had diverged; export an earlier checkpoint.")
    manifest = {
        "superself": __version__,
        "manifest": FORMAT,
        "torch": str(torch.__version__),
        "format": file_format,
        "architecture": architecture,
        "arguments": arguments,
        "description": describe(backbone),
        "stem": None if architecture == "custom" else _stem(backbone),
        "features": None if features is None else features.shape[1],
        "preprocessing": None if preprocessing is None else preprocessing.for_raw_images().to_dict(),
        "checksum": None if features is None else embedding_checksum(features),
    }
    return from_text(to_text(manifest))  # lists for tuples: the same in every format


def input_shape(backbone: nn.Module, preprocessing: Preprocessing | None) -> tuple[int, int, int] | None:
    """(C, H, W) of what the backbone takes; None if neither preprocessing nor ``build_backbone`` recorded it."""
    if preprocessing is not None:
        return preprocessing.input_shape
    spec = getattr(backbone, "spec", None)
    return spec.shape if isinstance(spec, BackboneSpec) else None


def architecture_of(backbone: nn.Module) -> tuple[str, dict[str, Any]]:
    """The name of a network and the arguments that ``rebuild`` needs; "custom" for what ``build_backbone`` did not make."""
    if type(backbone) is LabHalves:
        halves = [architecture_of(half) for half in (backbone.lightness, backbone.colour)]
        if all(name != "custom" for name, _ in halves):
            return "LabHalves", {"halves": halves, "use": backbone.use}
    spec = getattr(backbone, "spec", None)
    if isinstance(spec, BackboneSpec):
        name, arguments = spec.name or DEFAULT, {"shape": list(spec.shape), "norm": spec.norm}
        if _shapes(rebuild(name, arguments)) == _shapes(backbone):  # otherwise it was changed after it was built
            return name, arguments
    return "custom", {"class": f"{type(backbone).__module__}.{type(backbone).__qualname__}"}


def rebuild(architecture: str, arguments: dict[str, Any]) -> nn.Module:
    """A network of this architecture with random weights, on the CPU and in evaluation mode."""
    if architecture == "LabHalves":
        return LabHalves(*(rebuild(*half) for half in arguments["halves"]), arguments["use"]).eval()
    name = None if architecture == DEFAULT else architecture
    with preserve_random_state(), without_pretrained_weights():
        return build_backbone(name, tuple(arguments["shape"]), arguments["norm"]).eval()


def to_text(manifest: dict[str, Any]) -> str:
    """The manifest as JSON, for metadata that consist of strings."""
    return json.dumps(manifest)


def from_text(text: str | bytes | None) -> dict[str, Any] | None:
    """The inverse of ``to_text``; None for a file without a manifest."""
    return None if not text else json.loads(text)


def check_manifest(manifest: dict[str, Any], source: str) -> None:
    """Refuses the manifest of a newer version.

    Raises:
        ValueError: if this version cannot read it.
    """
    if manifest.get("manifest", 0) > FORMAT:
        raise ValueError(
            f"{source} was exported by superself {manifest.get('superself')} with manifest {manifest['manifest']}, and superself "
            f"{__version__} reads up to {FORMAT}; upgrade superself."
        )


def _stem(backbone: nn.Module) -> dict[str, Any] | None:
    """The first convolution, which ``build_backbone`` adapts to the images."""
    found = ((name, module) for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d))
    name, conv = next(found, ("", None))
    if conv is None:
        return None
    spec = getattr(backbone, "spec", None)
    return {
        "name": name,
        "in_channels": conv.in_channels,
        "kernel_size": list(conv.kernel_size),
        "stride": list(conv.stride),
        "for_small_images": bool(spec is not None and spec.small_stem),
    }


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items() if isinstance(value, Tensor)}
