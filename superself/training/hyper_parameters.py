"""The hyper-parameters of a supervisor: their names from its constructors, their values from its attributes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from superself.training.checkpoint import is_plain
from superself.training.describe import to_plain
from superself.training.identity import differences, identify, in_words
from superself.training.schedules import Schedule

if TYPE_CHECKING:
    from superself.training.settings import Settings

NOT_STORED = {"self", "model", "dataset", "collate_fn", "seed"}  # and what only concerns how the data are read:
READING = {"norm", "num_channels", "single_channel"}  # stored with the preprocessing
OF_THE_DATA = {"image_size", "on_bad_image", "read", "planes", "memory_limit", *READING}
BASES = {"Module", "Buildable", "Supervisor", "JointEmbedding", "AdversarialSupervisor"}  # not algorithms
SCHEDULE = "schedule"  # key of the values of a Schedule in a checkpoint
MISSING = object()
MOST_DIFFERENCES = 3  # that are listed for one hyper-parameter, such as a backbone


def declared(supervisor: nn.Module) -> dict[str, Any]:
    """Every hyper-parameter by name, as it was passed or by default; networks as they were given."""
    names = dict.fromkeys(name for name, _ in _parameters(type(supervisor)))
    values = {name: _value(supervisor, name) for name in names}
    return {name: value for name, value in values.items() if value is not MISSING}


def stored_values(supervisor: nn.Module) -> dict[str, Any]:
    """The hyper-parameters that a checkpoint can hold: those that are plain values."""
    plain = {name: _storable(value) for name, value in declared(supervisor).items()}
    return {name: value for name, value in plain.items() if is_plain(value)}


def adopt(supervisor: nn.Module, stored: dict[str, Any]) -> tuple[bool, list[str]]:
    """Sets the stored hyper-parameters that were not passed to ``supervisor``.

    Returns:
        Whether anything changed, and where the file contradicts what was passed, both values included.
    """
    defaults = dict(_parameters(type(supervisor)))
    changed, contradictions = False, []
    for name, value in stored.items():
        own = _value(supervisor, name)
        if own is MISSING or _equal(_storable(own), value):
            continue
        passed = (
            name in supervisor._passed
            or name not in supervisor._adopted
            and not _equal(_storable(own), _storable(defaults.get(name)))
        )
        if isinstance(value, dict) and set(value) == {SCHEDULE}:
            value = Schedule(**value[SCHEDULE])
        if passed:
            contradictions.append(f"{name}={in_words(identify(own))} was passed and the file has {name}={value!r}")
            continue
        changed = True
        supervisor._adopted.add(name)
        setattr(supervisor.given if hasattr(supervisor.given, name) else supervisor, name, value)
    return changed, [text for text in contradictions if len(text) < 500]


def lineage(cls: type) -> list[str]:
    """The class and the algorithms it is derived from: runs of classes that share one can be loaded and continued."""
    return [base.__name__ for base in cls.__mro__ if issubclass(base, nn.Module) and base.__name__ not in BASES]


def run_identity(supervisor: nn.Module, settings: Settings, precision: str) -> dict[str, dict[str, Any]]:
    """What determines the weights that a run ends with, in values that a checkpoint can hold; see ``identify``.

    Args:
        supervisor: with its networks built.
        settings: of the run.
        precision: that the run computes in.
    """
    images, options, dataset = supervisor.images, supervisor._open_options, supervisor._dataset
    while hasattr(dataset, "dataset"):  # a Subset
        dataset = dataset.dataset
    data = {"read": options["read"], "planes": options["planes"], "collate_fn": supervisor.collate_fn}
    steps = dict.fromkeys(sorted(READING)) | {"single_channel": False}
    steps = steps if images.reading is None else images.reading.options()
    transforms = {name: getattr(dataset, name, None) for name in ("transform", "target_transform")}
    return {
        "settings": {**settings.determining(), "precision": precision},
        "arguments": {name: identify(value) for name, value in declared(supervisor).items()},
        "data": {"image_size": tuple(images.shape[1:]), **identify(data), **identify(transforms), **identify(steps)},
        "networks": {"model": identify(supervisor.model)},
    }


def contradictions(was: dict[str, Any], now: dict[str, Any], parts: Iterable[str]) -> list[str]:
    """Where two results of ``run_identity`` differ, both values included; only names that both have are compared."""
    pairs = [(name, was[part][name], now[part][name]) for part in parts for name in was[part] if name in now[part]]
    return [text for name, old, new in pairs for text in _shortened(differences(old, new, name), name)]


def _shortened(found: list[str], name: str) -> list[str]:
    more = len(found) - MOST_DIFFERENCES
    return [*found[:MOST_DIFFERENCES], f"{name}: {more} more differences"] if more > 0 else found


def default_of(cls: type, name: str) -> Any:
    """The default of a hyper-parameter in the constructors of ``cls``."""
    return dict(_parameters(cls))[name]


def _parameters(cls: type) -> list[tuple[str, Any]]:
    """Names and defaults of the hyper-parameters of all constructors, those of the class itself first."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if base is nn.Module:
            break
        if "__init__" in vars(base):
            for parameter in inspect.signature(vars(base)["__init__"]).parameters.values():
                if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                    found.setdefault(parameter.name, parameter.default)
    return [(name, default) for name, default in found.items() if name not in NOT_STORED | OF_THE_DATA]


def _storable(value: Any) -> Any:
    return {SCHEDULE: to_plain(asdict(value))} if isinstance(value, Schedule) else to_plain(value)


def _value(supervisor: nn.Module, name: str) -> Any:
    attributes = {**supervisor._modules, **vars(supervisor)}  # an augmentation may be a module
    return getattr(supervisor.given, name, attributes.get(name, MISSING))


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(_equal, first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_equal(first[key], second[key]) for key in first)
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return isinstance(first, Tensor) and isinstance(second, Tensor) and torch.equal(first.cpu(), second.cpu())
    return type(first) is type(second) and is_plain(first) and bool(first == second)
