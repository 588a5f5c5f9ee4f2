"""TorchScript files: raw images in, features out, without superself and without the network's Python code."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from superself.data import Preprocessing
from superself.exporting.checksum import preprocessed_batch
from superself.exporting.manifest import KEY, from_text, to_text
from superself.exporting.raw_images import FixedSize, PooledBackbone, RawImages, Steps, exportable_copy

ENTRY = f"{KEY}.json"  # with the manifest in the archive
SAME = 1e-4  # of the largest feature: by how much a traced network may differ at another image size


class ScriptedBackbone(nn.Module):
    """The backbone of a TorchScript file: preprocessed images (B, C, H, W) -> features (B, D).

    Args:
        network: as ``torch.jit.load`` gives it.
        description: in words.
    """

    def __init__(self, network: nn.Module, description: str) -> None:
        super().__init__()
        self.network, self.description = network, description

    def forward(self, images: Tensor) -> Tensor:
        """The features (B, D)."""
        return self.network(images)

    def describe(self) -> str:
        """What was exported, in words."""
        return f"TorchScript of {self.description}"


def write_torchscript(
    file: BinaryIO, backbone: nn.Module, preprocessing: Preprocessing, manifest: dict[str, Any]
) -> None:
    """Writes a scripted or, where its code cannot be compiled, a traced network.

    Tracing keeps the operations of one example. Whether they fit images of other sizes is tried; if not, the file refuses
    other sizes.

    Raises:
        ValueError: if the network can be neither scripted nor traced.
    """
    batch = preprocessed_batch(preprocessing, preprocessing.input_shape)  # (2, C, H, W)
    with exportable_copy(backbone) as network:
        pooled = PooledBackbone(network)
        try:
            scripted = torch.jit.trace(pooled, batch, check_trace=False)
            for images in (batch, batch[:1], batch.repeat(2, 1, 1, 1)):
                _require_same(scripted(images), pooled(images))
        except Exception as error:  # whatever the network and the tracer raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(
                f"{type(backbone).__name__} cannot be traced for TorchScript ({reason}); export it as .safetensors or .pth."
            ) from error
        core = scripted if _fits_other_sizes(scripted, pooled, batch) else FixedSize(scripted, *batch.shape[2:])
        whole = torch.jit.script(RawImages(Steps(preprocessing), core).eval())
        buffer = io.BytesIO()
        torch.jit.save(whole, buffer, _extra_files={ENTRY: to_text(manifest)})
    file.write(buffer.getvalue())


def _require_same(found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape or not torch.allclose(found, expected, atol=SAME * float(expected.abs().max())):
        raise ValueError("its operations depend on the images or on their number")


def _fits_other_sizes(traced: nn.Module, network: nn.Module, batch: Tensor) -> bool:
    """Whether both give the same features for images of another size, odd and not square, as far as the network takes them."""
    larger = nn.functional.interpolate(batch, (batch.shape[2] + 1, batch.shape[3] + 3))
    try:
        expected = network(larger)
    except Exception:  # the network takes one size only and says so itself, or its traced form would not
        return False
    try:
        _require_same(traced(larger), expected)
    except Exception:  # a traced operation of a fixed size
        return False
    return True


def read_torchscript(path: Path) -> tuple[nn.Module, dict[str, Any] | None]:
    """The network in a TorchScript file on the CPU, and its manifest: for a file of superself the part after preprocessing.

    Raises:
        ValueError: if the file cannot be read.
    """
    extra = {ENTRY: ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
            loaded = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path} is not a readable TorchScript file: {reason}; export it again.") from error
    manifest = from_text(extra[ENTRY])
    if manifest is None:
        return loaded.eval(), None
    return ScriptedBackbone(loaded.backbone, manifest["description"]).eval(), manifest
