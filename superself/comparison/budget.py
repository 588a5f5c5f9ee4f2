"""How long each method is trained: epochs, or as many as fit into a time."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch

from superself.basics.validate import require_positive
from superself.data import Images
from superself.data.sources import TensorSource
from superself.training.intervals import parse_duration

ROUNDED = 0.1  # a last epoch that would be shorter than this fraction is left out


@dataclass(frozen=True)
class Budget:
    """What each run may take: a number of epochs, or seconds of training; one of the two is None."""

    epochs: int | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        if self.epochs is not None:
            return "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        return f"{self.seconds / 60:.3g} min" if self.seconds >= 60 else f"{self.seconds:.3g} s"


@dataclass(frozen=True)
class Plan:
    """The number of epochs, and how many images an epoch has."""

    epochs: int
    images: int


def parse_budget(value: Any) -> Budget:
    """The budget that a user wrote.

    Args:
        value: a number of minutes, "90s", "2min", "1h", or "5 epochs".
    Raises:
        ValueError: if it is none of them.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        require_positive("budget", value, "is a number of minutes")
        return Budget(seconds=60.0 * value)
    found = re.fullmatch(r"\s*([1-9]\d*)\s*epochs?\s*", value) if isinstance(value, str) else None
    if found:
        return Budget(epochs=int(found[1]))
    try:
        return Budget(seconds=parse_duration("budget", value if isinstance(value, str) else ""))
    except ValueError as error:
        raise ValueError(
            f'budget={value!r} is neither a length of time nor a number of epochs; pass minutes as a number, "90s", "2min", '
            '"1h", or "5 epochs".'
        ) from error


def plan(seconds: float, step_seconds: float, epoch_seconds: float, images: int, batch_size: int) -> Plan:
    """What fits into the time: epochs of equal length, of a part of the images where the last epoch would not be complete.

    Args:
        seconds: training time.
        step_seconds: duration of a step.
        epoch_seconds: duration of an epoch in addition to its steps.
        images: size of the data set.
        batch_size: images per step.
    """
    all_steps = math.ceil(images / batch_size)
    epochs = max(1, math.ceil(seconds / (all_steps * step_seconds + epoch_seconds) - ROUNDED))
    steps = max(1, int((seconds / epochs - epoch_seconds) / step_seconds))
    return Plan(epochs, images if steps >= all_steps else steps * batch_size)


def random_part(images: Images, count: int, seed: int = 0) -> Images:
    """A fixed random part of the images, in memory."""
    if count >= len(images):
        return images.load()
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count].sort().values
    batch = images.batch(chosen)
    targets = None if batch.target is None else batch.target.clone()
    part = Images(TensorSource(batch.images, targets, images.classes))
    return part if batch.mask is None else part.with_masks(batch.mask)
