"""Arguments and versions in words and numbers, for the files of a run."""

from __future__ import annotations

import platform
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn

from superself.version import __version__


def versions() -> dict[str, str]:
    """Versions of what determines a result: this package, Python, torch, torchvision, and the kind of machine."""
    return {
        "superself": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a subclass of str, which weights_only loading refuses
        "torchvision": str(torchvision.__version__),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def describe_value(value: Any) -> Any:
    """``value`` in words and numbers that YAML can hold: classes and functions by name, modules by class."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(k): describe_value(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and len(value) <= 100:
        return [describe_value(v) for v in value]
    if isinstance(value, (nn.Module, torch.utils.data.Dataset)):
        return f"{type(value).__module__}.{type(value).__qualname__} object"
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return str(value)
    if hasattr(value, "shape"):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "func"):  # a functools.partial
        return f"{describe_value(value.func)} with {describe_value({**dict(enumerate(value.args)), **value.keywords})}"
    return f"{type(value).__name__} object"


def to_plain(value: Any) -> Any:
    """The same value with lists instead of ranges, and Python's numbers instead of NumPy's."""
    if isinstance(value, range):
        return list(value)
    if type(value) in (list, tuple):
        return type(value)(map(to_plain, value))
    return value.item() if isinstance(value, np.generic) else value
