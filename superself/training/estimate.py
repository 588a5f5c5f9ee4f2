"""What a run is about to do and how long it will take, measured before its first step."""

from __future__ import annotations

import time
from typing import Any

import torch

from superself.basics.random import preserve_random_state
from superself.training.files import checkpoint_path
from superself.training.finite import check_scalar
from superself.training.metrics import Metrics
from superself.training.out_of_memory import explain_out_of_memory
from superself.training.trackers.progress import duration


def describe_plan(run: Any, kept: Any) -> str:
    """What is about to run, in one line.

    Args:
        run: before its first step.
        kept: where the earlier run of this name goes, or None.
    """
    epochs = f"{run.settings.epochs} epoch{'s' * (run.settings.epochs > 1)}"
    plan = f"{epochs} of {run.steps_per_epoch} steps, stored as {checkpoint_path(run.name)}"
    if run.step:
        plan += f", resumed after step {run.step}"
        if run.stored_processes != run.parallel.world_size:
            plan += f" (by {run.stored_processes} process{'es' * (run.stored_processes > 1)}: views draw other random numbers)"
    if run.step and run.step >= run.total_steps:
        plan += "; this run is already finished, pass a larger epochs= to continue it"
    if kept is not None:
        plan += f"; the run that was there is kept as {kept} (resume=True would continue it)"
    plan += f"; {run.parallel.world_size} processes" if run.parallel.several else ""
    plan += run.training_step.describe()
    if run.parallel.agree(run.settings.progress and run.step < run.total_steps):
        seconds = estimate_seconds(run)
        plan += "" if seconds is None else f"; about {duration(seconds)}"
    return plan


def estimate_seconds(run: Any) -> float | None:
    """How long the rest of the run will take, measured on a forward and backward pass; restores all state.

    Returns:
        Seconds, or None for a loader that cannot show a batch without moving on.
    """
    supervisor = run.supervisor
    if not hasattr(run.loader, "peek"):
        return None
    buffers = {name: buffer.clone() for name, buffer in supervisor.named_buffers()}
    training = {module: module.training for module in supervisor.modules()}
    state, metrics = supervisor.generator.get_state(), run.metrics
    seconds = 0.0
    try:
        with preserve_random_state():
            run.metrics = Metrics()
            supervisor.train()
            data = supervisor._as_batch(run.loader.peek()).to(supervisor.device)
            for _ in range(2):  # the first pass also warms up
                began = time.perf_counter()
                loss = run.forward(data)
                check_scalar(loss, supervisor)
                loss.backward()
                loss.item()
                seconds = time.perf_counter() - began
                if run.parallel.agree(seconds > 1):
                    break
    except Exception as error:
        explained = explain_out_of_memory(error, supervisor)
        if explained is None:
            raise
        raise explained from error
    finally:
        run.metrics = metrics
        supervisor.zero_grad(set_to_none=True)
        supervisor.generator.set_state(state)
        with torch.no_grad():
            for name, buffer in supervisor.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])
        for module, mode in training.items():
            module.training = mode
    return seconds * (run.total_steps - run.step)
