"""Schedules over optimiser steps, for learning rates and for momenta."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from ``start`` to ``end`` while ``progress`` goes from 0 to 1; ``end`` after that."""
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def constant(optimizer: Optimizer) -> LambdaLR:
    """The learning rate stays as it is; what supervise() uses when no schedule is given."""
    return LambdaLR(optimizer, lambda step: 1.0)


def warmup_cosine(warmup: float = 0.05, final: float = 0.0) -> Callable[[Optimizer, int], LambdaLR]:
    """Linear warm-up from near zero, then half a cosine down: ``supervise(lr_scheduler=warmup_cosine(0.1))``.

    Args:
        warmup: share of all steps that the rise takes, below 1.
        final: share of the learning rate that is left at the last step.
    Source: Loshchilov & Hutter, SGDR, arXiv:1608.03983 (one period, no restarts).
    Raises:
        ValueError: if ``warmup`` is not in [0, 1).
    """
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup={warmup} is a share of all steps and must be in [0, 1), for example warmup=0.05.")

    def schedule(optimizer: Optimizer, total_steps: int) -> LambdaLR:
        rise = round(warmup * total_steps)

        def factor(step: int) -> float:
            if step < rise:
                return (step + 1) / (rise + 1)
            return cosine(1.0, final, (step - rise) / max(1, total_steps - rise))

        return LambdaLR(optimizer, factor)

    return schedule


def start_schedule(lr_scheduler: Callable[..., Any] | None, optimizer: Optimizer, total_steps: int) -> Any:
    """The schedule of a run: ``f(optimizer)``, or ``f(optimizer, total_steps)`` where f needs a second argument."""
    schedule = lr_scheduler or constant
    needed = [p for p in inspect.signature(schedule).parameters.values() if p.default is p.empty]
    by_place = [p for p in needed if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return schedule(optimizer, total_steps) if len(by_place) > 1 else schedule(optimizer)
