"""Backbones from whatever holds one: a module, a supervisor, a stored run, or an exported file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from torch import nn

from superself.algorithms import ALGORITHMS, list_presets
from superself.basics.validate import shortened
from superself.buildable import Buildable
from superself.exporting import load_backbone
from superself.labels import LabelSupervisor
from superself.networks.backbones import is_backbone_name
from superself.training import read_checkpoint
from superself.training.files import checkpoint_path


def open_backbone(given: Any) -> nn.Module:
    """The backbone that ``given`` holds, with its preprocessing where that is known.

    Args:
        given: a module, a supervisor, the name of a run ("store/base"), or a file that ``export`` wrote ("resnet.onnx").
    Raises:
        FileNotFoundError: if there is no such run or file.
        TypeError: if it is something else.
        ValueError: if the run is of a class that is not one of the algorithms here, or ``given`` names a method or a network.
    """
    if isinstance(given, Buildable):
        return given.get_backbone()
    if isinstance(given, nn.Module):
        return given
    if not isinstance(given, (str, Path)):
        raise TypeError(
            f"{shortened(given)} holds no backbone; pass a module, a supervisor, the name of a run, or an exported file."
        )
    path = Path(given).expanduser()
    if path.is_file() and not _may_be_a_run(path):
        return load_backbone(path)
    if path.is_dir() or not checkpoint_path(path).is_file():
        _require_no_name_of_another_kind(str(given))
    return _backbone_of_run(given)


def _backbone_of_run(name: str | Path) -> nn.Module:
    algorithm = read_checkpoint(name)["algorithm"]
    classes = {cls.__name__: cls for cls in (*ALGORITHMS.values(), LabelSupervisor)}
    if algorithm not in classes:
        raise ValueError(
            f"the run {str(name)!r} is of {algorithm}, which is not among the algorithms of this package; load it with "
            f"{algorithm}().load({str(name)!r}) and pass the supervisor."
        )
    return classes[algorithm]().load(name).get_backbone()


def _may_be_a_run(path: Path) -> bool:
    """Whether a file should be read as a run: .pt, unless it holds a TorchScript graph."""
    if path.suffix != ".pt" or not zipfile.is_zipfile(path):
        return path.suffix == ".pt"
    with zipfile.ZipFile(path) as archive:
        return not any(name.endswith("/constants.pkl") for name in archive.namelist())


def _require_no_name_of_another_kind(name: str) -> None:
    """Refuses names of methods and networks, and of files and folders that are missing, each with what to do."""
    if name in ALGORITHMS or name in list_presets():
        kind = "an algorithm" if name in ALGORITHMS else "a preset"
        raise ValueError(
            f"{name!r} is the name of {kind}, not of a backbone; train it first, supervise(name='store/{name}'), and pass the "
            "supervisor or 'store/{name}'.".replace("{name}", name)
        )
    if is_backbone_name(name):
        raise ValueError(
            f"{name!r} is the name of a network without trained weights; pass build_backbone({name!r}, shape) of "
            "superself.networks to measure an untrained one, or a run or file with weights."
        )
    path = Path(name).expanduser()
    if path.suffix in (".pth", ".safetensors", ".ts", ".torchscript", ".onnx") or path.is_dir():
        load_backbone(path)  # raises, and says what is in the folder
