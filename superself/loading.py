"""Backbones from whatever holds one: a module, a supervisor, a stored run, or an exported file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from superself.algorithms import ALGORITHMS
from superself.basics.validate import shortened
from superself.buildable import Buildable
from superself.training import read_checkpoint


def open_backbone(given: Any) -> nn.Module:
    """The backbone that ``given`` holds, with its preprocessing where that is known.

    Args:
        given: a module, a supervisor, or the name of a run ("store/base").
    Raises:
        FileNotFoundError: if there is no such run.
        TypeError: if it is something else.
        ValueError: if the run is of a class that is not one of the algorithms here.
    """
    if isinstance(given, Buildable):
        return given.get_backbone()
    if isinstance(given, nn.Module):
        return given
    if not isinstance(given, (str, Path)):
        raise TypeError(f"{shortened(given)} holds no backbone; pass a module, a supervisor, or the name of a run.")
    algorithm = read_checkpoint(given)["algorithm"]
    classes = {cls.__name__: cls for cls in ALGORITHMS.values()}
    if algorithm not in classes:
        raise ValueError(
            f"the run {str(given)!r} is of {algorithm}, which is not among the algorithms of this package; load it with "
            f"{algorithm}().load({str(given)!r}) and pass the supervisor."
        )
    return classes[algorithm]().load(given).get_backbone()
