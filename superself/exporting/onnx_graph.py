"""ONNX files: raw images in, features out, for onnxruntime in any language."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from superself.basics.random import preserve_random_state
from superself.data import Preprocessing
from superself.exporting.manifest import KEY, from_text, to_text
from superself.exporting.raw_images import PooledBackbone, Steps, TwoOutputs, exportable_copy

INPUT, OUTPUT, MIDDLE = "images", "features", "preprocessed"  # names in the graph
LIMIT = 2**31 - 1  # bytes of one ONNX file
DTYPES = {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32}


class OnnxBackbone(nn.Module):
    """The backbone of an ONNX file, which runs in onnxruntime on the CPU: preprocessed images (B, C, H, W) -> (B, D).

    Its features have no gradient and it has no parameters.

    Args:
        model: the ONNX model as bytes, with the inputs and outputs of ``onnx_graph``.
        description: in words.
        source: the name of the file.
        width: D of its features.
    """

    def __init__(self, model: bytes, description: str, source: str = "", width: int | None = None) -> None:
        super().__init__()
        self.source, self.width = source, width
        self.model, self.description = model, description
        self._session = _session(model)

    def forward(self, images: Tensor) -> Tensor:
        """The features (B, D), on the device of the images."""
        inputs = {MIDDLE: images.detach().float().cpu().contiguous().numpy()}
        return torch.from_numpy(self._session.run([OUTPUT], inputs)[0]).to(images.device)

    def describe(self) -> str:
        """What was exported, in words."""
        return f"ONNX of {self.description}"

    def extra_repr(self) -> str:
        """The file and the width of the features, for ``repr``."""
        return f"{self.source!r}, {self.width} features"

    def reset_parameters(self) -> None:
        """Refuses: a graph has no initialisation to go back to."""
        raise ValueError(
            "an ONNX file has no weights that could be initialised again; pass the untrained network yourself, for example "
            "random=build_backbone(...) to compare(), or export the backbone as .safetensors."
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._session = _session(self.model)


def write_onnx(
    file: BinaryIO,
    backbone: nn.Module,
    preprocessing: Preprocessing,
    manifest: dict[str, Any],
    opset: int | None = None,
) -> int:
    """Writes the graph with any batch size, the image size of training, and images of the type that was trained on.

    Args:
        file: to write.
        backbone: that is exported.
        preprocessing: what it expects; becomes part of the graph.
        manifest: for the properties of the model.
        opset: version of the operators; None for torch's default.
    Returns:
        The opset.
    Raises:
        ImportError: without onnx and onnxscript.
        ValueError: if the network cannot be exported, or takes more than 2 GB.
    """
    _require("onnx", "onnxscript")
    images = torch.zeros(2, *raw_shape(preprocessing), dtype=DTYPES[preprocessing.dtype])
    with exportable_copy(backbone) as network, preserve_random_state(), contextlib.redirect_stdout(io.StringIO()):
        whole = TwoOutputs(Steps(preprocessing), PooledBackbone(network)).eval()
        try:
            program = torch.onnx.export(
                whole,
                (images,),
                input_names=[INPUT],
                output_names=[OUTPUT, MIDDLE],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
            model = program.model_proto
        except Exception as error:  # whatever the network and the exporter raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(
                f"{type(backbone).__name__} cannot be exported to ONNX ({reason}); export it as .safetensors or .pth, or replace "
                "the operation that ONNX lacks."
            ) from error
    model.graph.output.remove(next(value for value in model.graph.output if value.name == MIDDLE))
    model.producer_name, model.producer_version = "superself", manifest["superself"]
    version = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    for key, value in {KEY: to_text({**manifest, "opset": version}), "description": manifest["description"]}.items():
        model.metadata_props.add(key=key, value=value)
    if model.ByteSize() > LIMIT:
        raise ValueError(
            f"{type(backbone).__name__} takes {model.ByteSize() / 2**30:.1f} GB, and one ONNX file holds 2; export it as "
            ".safetensors."
        )
    file.write(model.SerializeToString())
    return version


def raw_shape(preprocessing: Preprocessing) -> tuple[int, int, int]:
    """(C, H, W) of images before they are read: the one channel that is repeated, or those that are kept."""
    channels, height, width = preprocessing.shape
    reading = preprocessing.reading
    return (1 if reading is not None and reading.single_channel else channels), height, width


def read_onnx(path: Path) -> tuple[OnnxBackbone, dict[str, Any]]:
    """The part of an exported graph after the preprocessing, as a module, and the manifest.

    Raises:
        ImportError: without onnx and onnxruntime.
        ValueError: if superself did not export the file.
    """
    _require("onnx", "onnxruntime")
    import onnx

    try:
        model = onnx.load(str(path))
    except Exception as error:  # of protobuf
        raise ValueError(f"{path} is not a readable ONNX file ({type(error).__name__}); export it again.") from error
    manifest = from_text({entry.key: entry.value for entry in model.metadata_props}.get(KEY))
    if manifest is None:
        raise ValueError(
            f"{path} was not exported by superself, so the names and the preprocessing of its inputs are unknown; wrap an "
            "onnxruntime.InferenceSession in a module that returns (B, D), and give it the attribute preprocessing."
        )
    return OnnxBackbone(_after_preprocessing(model), manifest["description"], str(path), manifest["features"]), manifest


def _after_preprocessing(model: Any) -> bytes:
    """The model with the preprocessed images as its input, and only the nodes that the features need from there."""
    import onnx

    graph = model.graph
    nodes = list(graph.node)
    makers = {name: place for place, node in enumerate(nodes) for name in node.output}
    needed, waiting = set(), [OUTPUT]
    while waiting:
        name = waiting.pop()
        if name != MIDDLE and name in makers and makers[name] not in needed:
            needed.add(makers[name])
            waiting += nodes[makers[name]].input
    kept = [nodes[place] for place in sorted(needed)]  # nodes are stored in topological order
    for node in kept:
        if node.op_type == "Shape" and node.input[0] == INPUT:  # the size of the batch, which the preprocessing keeps
            node.input[0] = MIDDLE
    used = {name for node in kept for name in node.input}
    if INPUT in used:
        raise ValueError("the graph uses the raw images after the preprocessing; run it with onnxruntime itself.")
    weights = [tensor for tensor in graph.initializer if tensor.name in used]
    images = onnx.helper.make_tensor_value_info(MIDDLE, onnx.TensorProto.FLOAT, None)
    part = onnx.helper.make_graph(kept, graph.name, [images], list(graph.output), weights)
    made = onnx.helper.make_model(
        part, opset_imports=model.opset_import, ir_version=model.ir_version, functions=model.functions
    )
    return made.SerializeToString()


def _session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _require(*names: str) -> None:
    for name in names:
        try:
            __import__(name)
        except ImportError as error:
            raise ImportError(
                f'ONNX files need {name}, which is not installed; pip install "superself[export]".'
            ) from error
