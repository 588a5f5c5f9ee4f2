"""load_backbone: a backbone from a file that was exported here, or from the weights of others."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from superself.basics.random import preserve_random_state
from superself.basics.validate import require_fraction, shortened
from superself.data import Preprocessing
from superself.exporting.checksum import (
    TOLERANCE,
    embedding_difference,
    features_of_batch,
    preprocessed_batch,
    tensor_digest,
)
from superself.exporting.manifest import KEY, check_manifest, from_text, rebuild
from superself.exporting.onnx_graph import read_onnx
from superself.exporting.script import read_torchscript
from superself.networks import LoadedWeights, build_backbone
from superself.networks.pretrained import best_part, load_tensors, read_weights

COUNTED_APART = "num_batches_tracked"  # counts steps of batch norm and changes no feature
LISTED = 4  # names in a message


def load_backbone(
    path: str | PathLike[str],
    into: nn.Module | None = None,
    architecture: str | None = None,
    shape: tuple[int, int, int] = (3, 225, 225),
    *,
    prefix: str = "",
    share: float = 0.9,
    verify: bool = True,
    device: torch.device | str | None = None,
) -> nn.Module:
    """The backbone in a file, in evaluation mode, with its ``preprocessing`` where the file says what it expects.

    ``backbone(backbone.preprocessing(images))`` are the features of raw images, as when it was exported. What was loaded is
    kept as ``backbone.loaded_weights``; parts that are missing give a warning.

    Weights of others load too, if ``into`` or ``architecture`` says what they belong to: state dicts and checkpoints with
    one in them (.pth, .pt, .safetensors). What stands before all names, such as "module.encoder_q.", is found and removed.
    Only tensors and plain values are read; no code in a file is run, except for the operations of a TorchScript or ONNX graph.

    Args:
        path: of the file, as ``supervisor.export`` or another program wrote it.
        into: the module that takes the weights; it keeps its mode. Needed for custom modules.
        architecture: a name as in ``build_backbone``, for weights of others.
        shape: (C, H, W) of the images, with ``architecture``.
        prefix: of several networks in a file, the one whose names begin with it, such as "teacher.".
        share: the fraction of the network's tensors that the file must have.
        verify: compare the features of a test image with those at export, where the file has them.
        device: to move it to; None: the CPU, or that of ``into``.
    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if ``path`` or ``into`` is something else.
        ValueError: if the file cannot be read, less than ``share`` matched, or the features differ from those at export.
        ImportError: if a library for the format is missing.
    """
    if not isinstance(path, (str, PathLike)):
        raise TypeError(f"path={shortened(path)} is not a path; pass that of a file that export() wrote.")
    if into is not None and not isinstance(into, nn.Module):
        raise TypeError(f"into={shortened(into)} is not a network; pass an instance of nn.Module.")
    if into is not None and architecture is not None:
        raise ValueError(f"into= and architecture={architecture!r} both say which network it is; pass one of them.")
    require_fraction("share", share, "is how much of the network must be in the file", lower_open=True)
    path = Path(path).expanduser()
    _require_file(path)
    graph = _graph_reader(path)
    if graph is not None:
        if into is not None or architecture is not None:
            raise ValueError(f"{path} holds a graph and no weights by name; leave out into= and architecture=.")
        network, manifest = graph(path)
    else:
        content, manifest = read_with_manifest(path)
        if verify and manifest is not None and manifest.get("tensors") not in (None, tensor_digest(content)):
            raise ValueError(
                f"{path} is damaged: its tensors are not those that were exported; copy or export it again."
            )
        network = into if into is not None else _network_for(path, content, manifest, architecture, shape)
        network.loaded_weights = load_matching(network, content, str(path), prefix, share)
    if manifest is not None:
        check_manifest(manifest, str(path))
        values = manifest["preprocessing"]
        preprocessing = None if values is None else Preprocessing.from_dict(values)
        complete = graph is not None or not network.loaded_weights.missing
        if verify and graph is None:
            _require_shapes(network, content, manifest, path)
        if verify and complete and manifest["checksum"] is not None:
            _verify(network, manifest, preprocessing, path)
        if preprocessing is not None:
            network.preprocessing = preprocessing
    return network if device is None else network.to(device)


def read_with_manifest(path: Path) -> tuple[Mapping[str, Any], dict[str, Any] | None]:
    """The content of a file of weights, and the manifest if superself exported it.

    Raises:
        ValueError: if it is not a file of tensors.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = read_weights(path)
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path} holds a {type(content).__name__} and no weights by name; pass a file that export() or "
            "torch.save(network.state_dict(), path) wrote."
        )
    return content, getattr(content, "_metadata", {}).get(KEY)


def load_matching(
    network: nn.Module, content: Mapping[str, Any], source: str, prefix: str, share: float
) -> LoadedWeights:
    """Loads the tensors that have the names and shapes of a network's, and says which.

    Args:
        network: takes them.
        content: a state dict, or a checkpoint with one in it.
        source: how messages call it.
        prefix: see ``load_backbone``.
        share: the fraction of the network's tensors that must match.
    Raises:
        ValueError: if fewer match; lists some of the names.
    """
    own = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    part = best_part(content, own, prefix)
    matched = [name for name in own if name in part.state and part.state[name].shape == own[name].shape]
    reshaped = [name for name in own if name in part.state and name not in matched]
    missing = [name for name in own if name not in part.state and not name.endswith(COUNTED_APART)]
    unexpected = [name for name in part.state if name not in own] + part.elsewhere
    counted = [name for name in own if not name.endswith(COUNTED_APART)]
    found = sum(not name.endswith(COUNTED_APART) for name in matched)
    changed = [f"the prefix {part.prefix!r} was removed"] if part.prefix else []
    if part.equals:
        changed.append(f"{part.equals[0]!r} fits equally well; pass it as prefix= to take that")
    changed += [f"{name} has another shape" for name in reshaped[:LISTED]]
    report = LoadedWeights(source, tuple(matched), (*missing, *reshaped), tuple(unexpected), tuple(changed))
    if not matched or found < share * len(counted):
        raise ValueError(
            f"{source} does not hold the weights of this {type(network).__name__}: {report}; needed are at least "
            f"{share:.0%}. Pass the network of these weights as into= or architecture=, or a smaller share=."
        )
    versions = None if part.prefix else getattr(content, "_metadata", None)
    load_tensors(network, {name: part.state[name] for name in matched}, versions)
    if report.missing or part.equals:
        warnings.warn(f"load_backbone: {report}.", stacklevel=3)
    return report


def _network_for(
    path: Path,
    content: Mapping[str, Any],
    manifest: dict[str, Any] | None,
    architecture: str | None,
    shape: tuple[int, int, int],
) -> nn.Module:
    """The network that the weights belong to, with random ones."""
    if architecture is not None:
        with preserve_random_state():
            return build_backbone(architecture, shape).eval()
    if manifest is None and "algorithm" in content:
        raise ValueError(
            f"{path} is a run, not an exported backbone; load it with {content['algorithm']}().load({str(path)!r})"
            ".get_backbone(), or export it."
        )
    if manifest is None:
        raise ValueError(
            f"{path} does not say which network its weights belong to; pass into=YOUR_MODULE, or architecture= with a name such "
            "as 'resnet18' and the shape= of the images."
        )
    check_manifest(manifest, str(path))
    if manifest["architecture"] == "custom":
        raise ValueError(
            f"{path} holds the weights of a custom module, {manifest['arguments']['class']}; make one and pass it as into=."
        )
    return rebuild(manifest["architecture"], manifest["arguments"])


def _require_shapes(network: nn.Module, content: Mapping[str, Any], manifest: dict[str, Any], path: Path) -> None:
    """Refuses a network with a layer, such as the stem, whose values in the file have another shape."""
    others = [name for name in network.loaded_weights.missing if name in content]
    if others:
        raise ValueError(
            f"{path}: {', '.join(others[:LISTED])} of this {type(network).__name__} would stay random, because the file's values "
            f"have another shape; pass a network like the exported one ({manifest['description']}), leave out into=, or pass "
            "verify=False to load the rest."
        )


def _verify(network: nn.Module, manifest: dict[str, Any], preprocessing: Preprocessing | None, path: Path) -> None:
    """Compares the features of the fixed batch with those at export."""
    spec = getattr(network, "spec", None)
    shape = manifest["arguments"].get("shape") or getattr(spec, "shape", None)
    if preprocessing is None and shape is None:
        return
    remedy = (
        "pass the same module as it was exported from as into=, the version of superself that exported it "
        f"({manifest['superself']}), or verify=False to load it regardless"
    )
    try:
        features = features_of_batch(network, preprocessed_batch(preprocessing, tuple(shape or ())))
    except Exception as error:  # of a custom network that takes other images
        raise ValueError(f"{path}: {type(network).__name__} fails on a test image ({error}); {remedy}.") from error
    difference = embedding_difference(features, manifest["checksum"])
    if not difference <= TOLERANCE:
        raise ValueError(
            f"{path}: the features of a test image differ from those at export by {difference:.2g} of "
            f"their size (allowed: {TOLERANCE:g}), so the network computes something else; {remedy}."
        )


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; pass the path of a file in it.")
    if not path.is_file():
        run = Path(f"{path}.pt").is_file()
        others = sorted(
            str(other) for ending in ("pth", "safetensors", "ts", "onnx") for other in path.parent.glob(f"*.{ending}")
        )
        remedy = (
            "it is the name of a run: load it with the supervisor's load(), or export its backbone"
            if run
            else f"pass the path that was given to export() (files in this folder: {', '.join(others) or 'none'})"
        )
        raise FileNotFoundError(f"There is no file {str(path)!r}; {remedy}.")


def _graph_reader(path: Path) -> Any:
    """The function that reads the file if it holds a graph, by ending or content; None for weights."""
    if path.suffix == ".onnx":
        return read_onnx
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):  # only TorchScript has them
                return read_torchscript
    elif path.suffix in (".ts", ".torchscript"):
        raise ValueError(f"{path} is not a readable TorchScript file; export it again.")
    return None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(
            f'{path} needs safetensors to be read, which is not installed; pip install "superself[export]".'
        ) from error
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return tensors, from_text((file.metadata() or {}).get(KEY))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable .safetensors file ({error}); export it again.") from error
