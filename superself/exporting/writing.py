"""export_backbone: a backbone as a file for torchvision, timm, other programs and other languages."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from superself.basics.validate import require_choice, shortened
from superself.data import Preprocessing
from superself.exporting.checksum import tensor_digest
from superself.exporting.manifest import KEY, make_manifest, to_text
from superself.exporting.onnx_graph import write_onnx
from superself.exporting.recipe import library_recipe
from superself.exporting.script import write_torchscript
from superself.networks import BackboneSpec, describe
from superself.training.checkpoint import require_plain
from superself.training.files import replacing

ENDINGS = {
    ".pth": "state_dict",
    ".safetensors": "safetensors",
    ".ts": "torchscript",
    ".torchscript": "torchscript",
    ".onnx": "onnx",
}
FORMATS = ("state_dict", "torchvision", "timm", "safetensors", "torchscript", "onnx")


@dataclass(frozen=True)
class Exported:
    """What was written; ``str(...)`` says it in a few lines, and it can be used wherever a path can.

    Args:
        path: of the file.
        format: one of ``FORMATS``.
        manifest: what the file says about the network; see ``docs/export.md``.
        recipe: Python code with which torchvision's or timm's own network takes the file without superself, stem and
            classifier edited as in training; None where that is not one of their networks, or the format is a graph.
        note: what the file leaves out.
    """

    path: Path
    format: str
    manifest: dict[str, Any] = field(repr=False)
    recipe: str | None = field(default=None, repr=False)
    note: str = ""

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        width = "" if self.manifest["features"] is None else f", {self.manifest['features']} features"
        opset = f", opset {self.manifest['opset']}" if "opset" in self.manifest else ""
        custom = self.manifest["architecture"] == "custom" and self.format not in ("torchscript", "onnx")
        into = ", into=YOUR_MODULE" if custom else ""
        first = f"{self.path} ({self.format}{opset}): {self.manifest['description']}{width if custom else ''}"
        load = f"superself.load_backbone({str(self.path)!r}{into}) gives it back"
        recipe = f"; without superself:\n{self.recipe}" if self.recipe else ""
        note = f"\nnote: {self.note}" if self.note else ""
        return f"{first}; {load}{recipe}".rstrip("\n") + note


def export_backbone(
    backbone: nn.Module,
    path: str | PathLike[str],
    format: str | None = None,
    preprocessing: Preprocessing | None = None,
    opset: int | None = None,
) -> Exported:
    """Writes a backbone to a file, completely or not at all; the backbone itself stays as it is.

    Args:
        backbone: ``supervisor.get_backbone()``, or any other module.
        path: of the file; an existing one is replaced.
        format: "state_dict" (.pth): the weights under the names of the module, which are those of torchvision and timm for
            their networks; "torchvision" and "timm": the same, but refused where it is not one of their networks;
            "safetensors"; "torchscript" (.ts, .torchscript) and "onnx": raw images in, features out. None: by the ending.
        preprocessing: what the backbone expects; None: ``backbone.preprocessing``. The last two formats need it.
        opset: of ONNX; None for torch's default.
    Returns:
        The path, the manifest, and a recipe for torchvision or timm.
    Raises:
        TypeError: if ``backbone`` is not a module.
        ValueError: if the format is unknown, or cannot hold this backbone; says why.
        ImportError: if a library for the format is missing.
        OSError: if the file cannot be written.
    """
    if not isinstance(backbone, nn.Module):
        raise TypeError(
            f"{shortened(backbone)} is not a backbone; pass a module, for example supervisor.get_backbone()."
        )
    path = Path(path).expanduser()
    chosen = format_of(path, format)
    preprocessing = preprocessing or getattr(backbone, "preprocessing", None)
    preprocessing = None if preprocessing is None else preprocessing.for_raw_images()
    kind = "state_dict" if chosen in ("torchvision", "timm") else chosen
    if kind in ("torchscript", "onnx") and preprocessing is None:
        raise ValueError(
            f"{chosen} files take raw images, and the preprocessing of this {type(backbone).__name__} is unknown; pass "
            "preprocessing=Preprocessing.of(open_images(...)) of superself.data."
        )
    manifest = make_manifest(backbone, preprocessing, kind)
    recipe = library_recipe(backbone, preprocessing, path) if kind in ("state_dict", "safetensors") else None
    if chosen in ("torchvision", "timm"):
        _require_library(backbone, chosen, recipe)
    manifest["recipe"] = recipe
    _require_folder(path)
    with replacing(path) as file:
        if kind == "state_dict":
            _write_state_dict(file, backbone, manifest)
        elif kind == "safetensors":
            _write_safetensors(file, backbone, manifest)
        elif kind == "torchscript":
            write_torchscript(file, backbone, preprocessing, manifest)
        else:
            manifest["opset"] = write_onnx(file, backbone, preprocessing, manifest, opset)
    return Exported(path, chosen, manifest, recipe)


def format_of(path: Path, format: str | None) -> str:
    """The format that was asked for, or that of the ending.

    Raises:
        ValueError: if neither is known.
    """
    if format is not None:
        require_choice("format", format, FORMATS)
        return format
    if path.suffix == ".pt":
        raise ValueError(
            f"{str(path)!r} ends in .pt, which are the files of runs; pass a path ending in .pth, or format=: one of "
            f"{', '.join(FORMATS)}."
        )
    if path.suffix not in ENDINGS:
        raise ValueError(
            f"{str(path)!r} ends in {path.suffix or 'nothing'}, which is not the ending of a format; pass a path ending in "
            f"{', '.join(ENDINGS)}, or format=: one of {', '.join(FORMATS)}."
        )
    return ENDINGS[path.suffix]


def plain_weights(backbone: nn.Module) -> OrderedDict[str, Tensor]:
    """The state dict on the CPU, each tensor contiguous and with memory of its own.

    Raises:
        ValueError: if a module's extra state is something else than tensors and plain values.
    """
    state = backbone.state_dict()
    for name, value in state.items():
        if isinstance(value, Tensor):
            state[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        else:
            try:
                require_plain(value, name)
            except TypeError as error:
                raise ValueError(f"the state of {type(backbone).__name__} cannot be exported: {error}") from error
    return state


def _write_state_dict(file: BinaryIO, backbone: nn.Module, manifest: dict[str, Any]) -> None:
    """The manifest goes where torch keeps the versions of modules, which ``load_state_dict`` does not take for a weight."""
    state = plain_weights(backbone)
    state._metadata = OrderedDict(getattr(state, "_metadata", {}))
    manifest["tensors"] = tensor_digest(state)
    state._metadata[KEY] = manifest
    torch.save(state, file)


def _write_safetensors(file: BinaryIO, backbone: nn.Module, manifest: dict[str, Any]) -> None:
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise ImportError(
            ".safetensors files need safetensors, which is not installed; "
            'pip install "superself[export]", or export to .pth.'
        ) from error
    state = plain_weights(backbone)
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(
            f"{others[0]} of {type(backbone).__name__} is not a tensor, and .safetensors holds only tensors; export to .pth."
        )
    manifest["tensors"] = tensor_digest(state)
    file.write(save(dict(state), {"format": "pt", KEY: to_text(manifest)}))


def _require_library(backbone: nn.Module, library: str, recipe: str | None) -> None:
    """Refuses what is not a network of torchvision or timm, and warns where the plain one would not take the weights."""
    spec = getattr(backbone, "spec", None)
    known = isinstance(spec, BackboneSpec) and spec.library == library and recipe is not None
    if not known and (isinstance(spec, BackboneSpec) or not type(backbone).__module__.startswith(f"{library}.")):
        raise ValueError(
            f"this backbone is not a network of {library}, but {describe(backbone)}; export it with format='state_dict' or "
            "'safetensors', and load it with superself.load_backbone()."
        )
    if known and spec.small_stem and "Conv2d" in recipe:
        warnings.warn(
            f"this {spec.name} has a stem for small images, so the plain network of {library} refuses its weights or gives other "
            "features with them; print(...) what export() returned for the lines that edit the network, or load the file with "
            "superself.load_backbone(), which makes them.",
            stacklevel=4,
        )


def _require_folder(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(
            f"{path} is a folder; pass the path of a file, for example {str(path / 'backbone.pth')!r}."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
