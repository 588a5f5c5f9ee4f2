"""Schedules over optimizer steps: for learning rates, weight decay, temperatures and the momentum of averages."""

from __future__ import annotations

import bisect
import functools
import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from superself.training.optimizers import callable_name, required_parameters

Duration = int | float | str  # steps; a fraction of the run, below 1; epochs, written "10 epochs"
SHAPES = ("cosine", "linear", "constant", "step", "exponential")
RUN_LENGTH = ("total_steps", "steps_per_epoch", "epochs")  # what a function that makes a scheduler may ask for


def epochs(count: float) -> str:
    """``count`` epochs as a duration: ``Schedule(1.0, 0.0, warmup=epochs(10))``."""
    return f"{count} epochs"


@dataclass(frozen=True)
class Schedule:
    """A number that depends on the training step; called as ``schedule(step, total_steps, steps_per_epoch)``.

    It goes linearly from ``warmup_start`` to ``start`` during warm-up and then follows ``shape``. With t the fraction of the
    remaining steps that is done, and s their number:

    - "cosine": end + (start - end) (1 + cos(pi t)) / 2
    - "linear": start + (end - start) t
    - "constant": start
    - "step": start * factor^k after k milestones, or after k times ``every``, counted from step 0
    - "exponential": end + (start - end) 2^(-s / half_life)

    A duration is a number of steps (int), a fraction of the run (float below 1), or ``epochs(10)``. Fields are plain values,
    so ``Schedule(**dataclasses.asdict(schedule))`` is equal to ``schedule``.

    Source: cosine: Loshchilov & Hutter, SGDR, arXiv:1608.03983 (one period, no restarts).
    Args:
        start: value after warm-up, or at step 0 without warm-up.
        end: value after the last step ("cosine", "linear"), or in the limit ("exponential", 0 by default).
        shape: one of the five above.
        warmup: duration of the warm-up.
        warmup_start: value before the first step of the warm-up; that step is already one increment above it, so that a
            learning rate that rises from 0 is not 0 in the first step.
        milestones: one or several durations from step 0 ("step").
        every: duration between two milestones ("step").
        factor: of the value at each milestone ("step").
        half_life: duration in which the distance to ``end`` halves ("exponential").
    Raises:
        ValueError: if an argument is missing, not needed by the shape, or out of range.
    """

    start: float
    end: float | None = None
    shape: str = "cosine"
    warmup: Duration = 0
    warmup_start: float = 0.0
    milestones: Duration | tuple[Duration, ...] = ()
    every: Duration | None = None
    factor: float = 0.1
    half_life: Duration | None = None

    def __post_init__(self) -> None:
        single = isinstance(self.milestones, Duration)
        object.__setattr__(self, "milestones", (self.milestones,) if single else tuple(self.milestones))
        if self.shape not in SHAPES:
            raise ValueError(f"shape={self.shape!r} is unknown; pass one of {', '.join(SHAPES)}.")
        for name in ("start", "end", "warmup_start", "factor"):
            value = getattr(self, name)
            if not (_is_finite(value) or (name == "end" and value is None)):
                raise ValueError(f"{name}={value!r} must be a finite number.")
        if self.factor <= 0:
            raise ValueError(f"factor={self.factor} multiplies the value at each milestone and must be positive.")
        check_duration("warmup", self.warmup, lowest=0)
        for name in ("every", "half_life"):
            if getattr(self, name) is not None:
                check_duration(name, getattr(self, name))
        for milestone in self.milestones:
            check_duration("milestones", milestone)
        self._check_shape()

    def _check_shape(self) -> None:
        needs_end = self.shape in ("cosine", "linear")
        if needs_end and self.end is None:
            raise ValueError(f'shape={self.shape!r} needs end=, its last value; pass it, or shape="constant".')
        if self.shape in ("constant", "step") and self.end is not None:
            raise ValueError(f"end={self.end} is not used with shape={self.shape!r}; leave it out.")
        if bool(self.milestones) + (self.every is not None) != (self.shape == "step"):
            given = f"milestones={self.milestones}, every={self.every!r}"
            raise ValueError(
                f'shape={self.shape!r} with {given}: shape="step" needs exactly one of milestones= and every=, '
                "other shapes take neither."
            )
        if (self.shape == "exponential") != (self.half_life is not None):
            raise ValueError(
                f'shape={self.shape!r} with half_life={self.half_life!r}: shape="exponential" needs half_life=, '
                "other shapes do not take it."
            )

    def __call__(self, step: int, total_steps: int, steps_per_epoch: int | None = None) -> float:
        """The value at ``step`` (from 0) of ``total_steps``; ``steps_per_epoch`` is needed for durations in epochs."""
        count = functools.partial(count_steps, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
        warmup = count(self.warmup)
        if step < warmup:
            return self.warmup_start + (self.start - self.warmup_start) * (step + 1) / (warmup + 1)
        done = min((step - warmup) / max(1, total_steps - warmup), 1.0)
        if self.shape == "cosine":
            return cosine(self.start, self.end, done)
        if self.shape == "linear":
            return self.start + (self.end - self.start) * done
        if self.shape == "exponential":
            end = self.end or 0.0
            return end + (self.start - end) * 0.5 ** ((step - warmup) / max(1, count(self.half_life)))
        if self.shape == "step" and self.every is not None:
            return self.start * self.factor ** (step // max(1, count(self.every)))
        return self.start * self.factor ** bisect.bisect_right(sorted(map(count, self.milestones)), step)

    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value it can reach, in a run of any length."""
        values = [self.start]
        if self.warmup:
            values.append(self.warmup_start)
        if self.end is not None or self.shape == "exponential":
            values.append(self.end or 0.0)
        if self.milestones:
            values.append(self.start * self.factor ** len(self.milestones))
        if self.every is not None and self.factor != 1:
            values.append(0.0 if self.factor < 1 else math.copysign(math.inf, self.start))
        return min(values), max(values)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_duration(name: str, value: Any, lowest: int = 1) -> None:
    """Raises a ValueError unless ``value`` is a number of steps, a fraction of the run, or a text such as "10 epochs"."""
    if isinstance(value, str):
        number, _, unit = value.partition(" ")
        try:
            valid = unit in ("epoch", "epochs") and math.isfinite(float(number)) and float(number) >= 0
        except ValueError:
            valid = False
    elif isinstance(value, float):
        valid = 0 <= value < 1 and (value > 0 or lowest == 0)
    else:
        valid = isinstance(value, int) and not isinstance(value, bool) and value >= lowest
    if not valid:
        raise ValueError(
            f"{name}={value!r} is not a duration; pass a number of steps (int, at least {lowest}), a fraction of the run "
            '(float below 1) or epochs, for example "10 epochs".'
        )


def count_steps(duration: Duration, total_steps: int, steps_per_epoch: int | None) -> int:
    """``duration`` in steps."""
    if isinstance(duration, str):
        if steps_per_epoch is None:
            raise ValueError(
                f"{duration!r} can only be converted to steps with steps_per_epoch; pass it to the schedule."
            )
        return round(float(duration.split()[0]) * steps_per_epoch)
    return round(duration * total_steps) if isinstance(duration, float) else duration


def scheduled(value: float | Schedule, step: int, total_steps: int, steps_per_epoch: int | None = None) -> float:
    """The value of a hyper-parameter at ``step``: a Schedule is evaluated, a number is returned unchanged."""
    return value(step, total_steps, steps_per_epoch) if isinstance(value, Schedule) else value


def check_bounds(name: str, value: float | Schedule, lowest: float, highest: float) -> None:
    """Raises a ValueError if the hyper-parameter ``name`` is, or reaches during the run, a value outside [lowest, highest]."""
    low, high = value.bounds() if isinstance(value, Schedule) else (value, value)
    if not (lowest <= low and high <= highest):
        raise ValueError(f"{name}={value} must stay within [{lowest:g}, {highest:g}].")


# ---- learning rates --------------------------------------------------------------------------------------------------


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from ``start`` to ``end`` while ``progress`` goes from 0 to 1; ``end`` after that."""
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


constant = Schedule(1.0, shape="constant")  # the learning rate never changes: supervise(lr_scheduler=constant)


def warmup_cosine(warmup: Duration = 0.05, final: float = 0.0) -> Schedule:
    """Linear warm-up from near zero, then half a cosine: ``supervise(lr_scheduler=warmup_cosine(0.1))``.

    Args:
        warmup: a number of steps (int), a fraction of the run (float below 1), or ``epochs(10)``.
        final: the learning rate after the last step, as a fraction of ``lr``.
    Raises:
        ValueError: if ``warmup`` is not a duration.
    """
    return Schedule(1.0, final, warmup=warmup)


NAMED_SCHEDULES = {"constant": constant, "cosine": Schedule(1.0, 0.0), "warmup_cosine": warmup_cosine()}


def check_lr_scheduler(
    lr_scheduler: str | Schedule | Callable[..., Any] | None, default: str | Schedule = "constant"
) -> Schedule | Callable[..., Any]:
    """Looks up a name, and checks that a function can be called; needs no optimizer, so it can run before any data is read.

    Raises:
        ValueError: if the name is unknown.
        TypeError: if ``lr_scheduler`` cannot make a scheduler; says how to pass one.
    """
    chosen = default if lr_scheduler is None else lr_scheduler
    if isinstance(chosen, str):
        if chosen.lower() not in NAMED_SCHEDULES:
            raise ValueError(
                f"lr_scheduler={chosen!r} is unknown; pass one of {', '.join(NAMED_SCHEDULES)}, or a Schedule."
            )
        return NAMED_SCHEDULES[chosen.lower()]
    if not callable(chosen):
        raise TypeError(
            f"lr_scheduler is a {type(chosen).__name__} object, but the optimizer it belongs to is only created by "
            "supervise(); pass a class or a function of the optimizer, for example "
            "lr_scheduler=lambda optimizer, total_steps: CosineAnnealingLR(optimizer, T_max=total_steps)."
        )
    if not isinstance(chosen, Schedule):
        _requested_arguments(chosen)
    return chosen


def make_lr_scheduler(
    lr_scheduler: str | Schedule | Callable[..., Any] | None,
    optimizer: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    default: str | Schedule = "constant",
) -> Any:
    """The learning-rate scheduler of a run, stepped once per optimizer step.

    Args:
        lr_scheduler: a name ("constant", "cosine", "warmup_cosine"); a Schedule, by which the initial learning rate of each
            group is multiplied, except in groups with ``fixed_lr=True``; or a function or class called as ``f(optimizer)``,
            which also gets ``total_steps``, ``steps_per_epoch`` and ``epochs`` if it has parameters of these names. None
            takes ``default``.
        optimizer: whose groups are scheduled.
        total_steps: of the run.
        steps_per_epoch: steps in one epoch.
        default: a name or a Schedule.
    Raises:
        ValueError: if the name is unknown.
        TypeError: if the function has other required parameters, or returns something that cannot be stepped.
    """
    chosen = check_lr_scheduler(lr_scheduler, default)
    if isinstance(chosen, Schedule):
        return _multiply_lr(optimizer, chosen, total_steps, steps_per_epoch)
    lengths = {
        "total_steps": total_steps,
        "steps_per_epoch": steps_per_epoch,
        "epochs": total_steps // max(1, steps_per_epoch),
    }
    scheduler = chosen(optimizer, **{name: lengths[name] for name in _requested_arguments(chosen)})
    _check_scheduler(scheduler, callable_name(chosen))
    fixed = [str(group.get("name")) for group in optimizer.param_groups if group.get("fixed_lr")]
    if fixed:
        warnings.warn(
            f"{callable_name(chosen)} also changes the learning rate of the groups that have fixed_lr=True ({', '.join(fixed)}); "
            "pass a Schedule or a name such as lr_scheduler='cosine' to keep it fixed.",
            stacklevel=2,
        )
    return scheduler


def _multiply_lr(optimizer: Optimizer, schedule: Schedule, total_steps: int, steps_per_epoch: int) -> LambdaLR:
    warmup = count_steps(schedule.warmup, total_steps, steps_per_epoch)
    if warmup and warmup >= total_steps:
        warnings.warn(
            f"The warm-up of {warmup} steps is not shorter than the run ({total_steps} steps), so lr is never reached; "
            "pass a shorter warm-up or more epochs.",
            stacklevel=3,
        )

    def factor(step: int) -> float:
        return schedule(step, total_steps, steps_per_epoch)

    return LambdaLR(optimizer, [_unchanged if g.get("fixed_lr") else factor for g in optimizer.param_groups])


def _unchanged(step: int) -> float:
    return 1.0


def _requested_arguments(factory: Callable[..., Any]) -> list[str]:
    """Which of RUN_LENGTH ``factory`` is called with, by name; a TypeError if it needs more than these and the optimizer."""
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # some functions written in C have no signature
        return []
    name = callable_name(factory)
    first = parameters[0] if parameters else None
    if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD) or first.name in RUN_LENGTH:
        raise TypeError(f"lr_scheduler={name} must take the optimizer as its first argument; write f(optimizer, ...).")
    others = [p for p in parameters[1:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    # Arguments bound by the user take precedence: if a partial binds one of the three, only what is still required is passed.
    bound = set(factory.keywords) & set(RUN_LENGTH) if isinstance(factory, functools.partial) else set()
    by_name = [p for p in others if p.name in RUN_LENGTH and p.kind is not p.POSITIONAL_ONLY]
    requested = [p.name for p in by_name if p.default is p.empty or not bound]
    missing = [p.name for p in others if p.default is p.empty and p.name not in requested]
    if missing:
        raise TypeError(
            f"lr_scheduler={name} needs {', '.join(missing)}, but it is only called with the optimizer and, by name, with "
            f"{', '.join(RUN_LENGTH)}; bind the rest: "
            f"lr_scheduler=functools.partial({name}, {missing[0]}=...), or if the value depends on the length of the run, as in "
            "lr_scheduler=lambda optimizer, total_steps: CosineAnnealingLR(optimizer, T_max=total_steps)."
        )
    return requested


def _check_scheduler(scheduler: Any, name: str) -> None:
    """Raises a TypeError unless the loop can step ``scheduler`` and a checkpoint can store it."""
    missing = [m for m in ("step", "state_dict", "load_state_dict") if not callable(getattr(scheduler, m, None))]
    if missing:
        given = "None" if scheduler is None else f"a {type(scheduler).__name__} object"
        raise TypeError(
            f"lr_scheduler={name} returned {given}, which has no {missing[0]}(); return a scheduler of "
            "torch.optim.lr_scheduler, or an object with step(), state_dict() and load_state_dict()."
        )
    needed = required_parameters(scheduler.step)
    if needed:
        raise TypeError(
            f"lr_scheduler={name} returned a {type(scheduler).__name__}, whose step() needs {', '.join(needed)}, but step() is "
            "called without arguments after each optimizer step; use another scheduler, or step this one in your own _update."
        )
