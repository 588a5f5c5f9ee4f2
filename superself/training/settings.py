"""Settings: what one call of supervise() was asked to do, validated before a file is read or written."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from superself.basics.random import LARGEST_SEED
from superself.basics.validate import require_choice, require_count, require_fraction, require_positive, shortened
from superself.training.checkpoint import checkpoint_path
from superself.training.describe import describe_value
from superself.training.identity import identify
from superself.training.intervals import parse_duration
from superself.training.optimizers import check_optimizer
from superself.training.precision import check_precision
from superself.training.schedules import Schedule, check_bounds, check_lr_scheduler
from superself.training.trackers import BY_NAME, Tracker

DETERMINE_THE_RUN = (
    *("lr", "optimizer", "batch_size", "shuffle", "weight_decay", "lr_scheduler", "precision"),
    *("accumulate", "micro_batch", "clip", "average", "sync_batchnorm"),
)
STRATEGIES = ("auto", "ddp", "fsdp", "dp")
LONGEST_NAME = 230  # bytes; file systems take 255, and endings and the number of an archived run are added
ON_NAN = ("stop", "skip", "rollback")


@dataclass(frozen=True)
class Settings:
    """The arguments of ``supervise()``; see there for what each one means.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a value is out of range, or two arguments contradict each other.
    """

    lr: float = 1e-3
    optimizer: Callable[..., torch.optim.Optimizer] | str = torch.optim.Adam
    epochs: int = 10
    batch_size: int = 32
    shuffle: bool = True
    num_workers: int = 0
    name: str | Path = "store/base"
    pretrained: bool | str | Path = False
    lr_scheduler: Callable[..., Any] | str | None = None
    resume: bool | str = False
    overwrite: bool = False
    weight_decay: float | Schedule | None = None
    seed: int | None = None
    probe: tuple[Any, Any] | None = None
    probe_every: int = 1
    precision: str = "auto"
    devices: int | str | Sequence[int] = "auto"
    strategy: str = "auto"
    num_nodes: int = 1
    sync_batchnorm: bool = False
    accumulate: int = 1
    micro_batch: int | None = None
    clip: float | None = None
    average: float | None = None
    on_nan: str = "stop"
    save_every: str | float | None = "5min"
    compile: bool = False
    progress: bool = True
    trackers: Sequence[Tracker | str] = ()
    evaluators: Sequence[Any] = ()
    testdata: Any = None
    notes: str | None = None
    keep_best: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.generic):
                object.__setattr__(self, field.name, value.item())
        self._require_number("lr")
        if self.lr == 0:
            raise ValueError("lr=0 trains nothing; pass a number above 0 to supervise().")
        if isinstance(self.weight_decay, Schedule):
            check_bounds("weight_decay", self.weight_decay, 0, math.inf)
        elif self.weight_decay is not None:
            self._require_number("weight_decay")
        for name in ("epochs", "batch_size", "probe_every", "num_nodes", "accumulate"):
            self._require_count(name, 1)
        if self.micro_batch is not None:
            self._require_count("micro_batch", 1)
        self._check_memory_options()
        _check_devices(self.devices)
        require_choice("strategy", self.strategy, STRATEGIES)
        require_choice("on_nan", self.on_nan, ON_NAN)
        parse_duration("save_every", self.save_every)
        if self.clip is not None:
            require_positive("clip", self.clip, "is the largest norm of the gradient")
        if self.average is not None:
            require_fraction("average", self.average, "is the fraction of the average that is kept", upper_open=True)
        self._require_count("num_workers", 0)
        if self.seed is not None:
            require_count("seed", self.seed, "makes a run repeatable", minimum=0, maximum=LARGEST_SEED)
        for name in ("shuffle", "overwrite", "compile", "progress", "sync_batchnorm"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}={getattr(self, name)!r} must be True or False.")
        object.__setattr__(self, "name", _run_name(self.name))
        if not any(self.resume is known for known in (True, False)) and self.resume != "auto":
            raise ValueError(
                f'resume={self.resume!r} must be True, False or "auto", which continues the run if it exists and starts it '
                "otherwise."
            )
        if not isinstance(self.pretrained, (bool, str, Path)) or str(self.pretrained) == "":
            raise TypeError(f"pretrained={self.pretrained!r} must be True, False, or the name of a run.")
        if self.resume is True and self.pretrained:
            raise ValueError(
                "resume=True and pretrained=True are mutually exclusive: resume=True continues the stored run "
                "(optimizer, step and order included), pretrained=True starts a new run from stored weights; pass one of "
                "them to supervise()."
            )
        if self.resume is True and self.overwrite:
            raise ValueError("resume=True continues a run and overwrite=True replaces it; pass one of them.")
        if self.probe is not None and not (isinstance(self.probe, (tuple, list)) and len(self.probe) == 2):
            raise ValueError(
                f"probe is a {type(self.probe).__name__}, but a pair (labelled_train, labelled_test) is needed; pass two data "
                "sets."
            )
        if isinstance(self.trackers, (list, tuple)):
            for tracker in self.trackers:
                if isinstance(tracker, str):
                    require_choice("trackers", tracker, tuple(BY_NAME))
            made = tuple(BY_NAME[tracker]() if isinstance(tracker, str) else tracker for tracker in self.trackers)
            object.__setattr__(self, "trackers", made)
        self._check_instances("trackers", "Tracker", "epoch")
        self._check_instances("evaluators", "Evaluator", "evaluate")
        for name in ("notes", "keep_best"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise TypeError(f"{name}={shortened(getattr(self, name))} must be a text; pass it to supervise().")
        object.__setattr__(self, "optimizer", check_optimizer(self.optimizer))
        object.__setattr__(self, "precision", check_precision(self.precision))
        check_lr_scheduler(self.lr_scheduler)

    def check_data(self, count: int) -> None:
        """Raises a ValueError if ``count`` images cannot be trained on."""
        if count == 0:
            raise ValueError(
                "There is no data to train on: the supervisor was made without a data set and the folder 'dataset' holds no "
                "images; pass a folder, a list of paths, an array, a tensor or a torch Dataset to the constructor."
            )
        if self.batch_size > count:
            raise ValueError(
                f"batch_size={self.batch_size} is larger than the data set ({count} images), so there is no full batch; "
                f"pass batch_size <= {count} to supervise()."
            )

    @property
    def continues(self) -> bool:
        """Whether the run in NAME.pt is continued, rather than a new one started."""
        return self.resume is True or (self.resume == "auto" and checkpoint_path(self.name).is_file())

    def describe(self) -> dict[str, Any]:
        """The settings in words and numbers that a YAML file can hold."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        named = {name: [type(part).__name__ for part in values[name]] for name in ("trackers", "evaluators")}
        return describe_value({**values, **named})

    def determining(self) -> dict[str, Any]:
        """The settings that a resumed run must share, as identities: all that change a weight, apart from the seed."""
        values = {name: identify(getattr(self, name)) for name in DETERMINE_THE_RUN}
        return {**values, "lr_scheduler": identify(check_lr_scheduler(self.lr_scheduler))}  # "cosine" is a Schedule

    def _check_memory_options(self) -> None:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate={self.accumulate} does not divide batch_size={self.batch_size} into equal parts; pass a divisor."
            )
        if self.accumulate > 1 and self.micro_batch is not None:
            raise ValueError("accumulate= and micro_batch= both split a batch; pass only one of them.")

    def _check_instances(self, name: str, kind: str, method: str) -> None:
        """Makes a tuple of a list of observers; refuses classes and what lacks a method of the ``kind``."""
        parts = () if getattr(self, name) is None else getattr(self, name)
        if not isinstance(parts, (list, tuple)):
            raise TypeError(f"{name} is a {type(parts).__name__}; pass a list, {name}=[My{kind}()].")
        for part in parts:
            if inspect.isclass(part) or not hasattr(part, method):
                raise TypeError(f"{name} has {part!r}, which is not a {kind}; pass instances, {name}=[My{kind}()].")
        object.__setattr__(self, name, tuple(parts))

    def _require_number(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name}={value!r} must be a number, for example {name}=1e-3; pass it to supervise().")
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}={value!r} must be finite and not negative; pass such a number to supervise().")

    def _require_count(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r} must be a whole number of at least {least}; pass it to supervise().")


def _run_name(name: Any) -> str:
    """The name of a run without the extension of its checkpoint."""
    path = Path(os.path.expanduser(name)) if isinstance(name, (str, Path)) else Path()  # "~name" of no user stays
    path = path.with_suffix("") if path.suffix == ".pt" else path
    if path.name in ("", ".", ".."):
        raise TypeError(f"name={name!r} must be a path without an extension, for example 'store/base'.")
    if "\0" in str(path) or len(path.name.encode()) > LONGEST_NAME:
        raise ValueError(
            f"name={shortened(str(name))} cannot be the name of a file; pass one without NUL characters and with at most "
            f"{LONGEST_NAME} bytes."
        )
    return str(path)


def _check_devices(devices: Any) -> None:
    """Raises an error unless ``devices`` is "auto", a count, or a list of different positions."""
    need = (
        f'devices={devices!r} must be "auto", a number of devices or processes (at least 1), or a list such as [0, 2]'
    )
    if isinstance(devices, (list, tuple)):
        if not devices or not all(type(device) is int and device >= 0 for device in devices):
            raise ValueError(f"{need}; pass the positions of the devices, from 0 on.")
        if len(set(devices)) < len(devices):
            raise ValueError(f"{need}; pass each device once.")
    elif devices != "auto" and (type(devices) is not int or devices < 1):
        raise ValueError(f'{need}; pass "auto" to use one device, or one for each process of torchrun.')
