"""What a checkpoint holds of a run next to its supervisor, and how a run continues from it."""

from __future__ import annotations

from typing import Any

import numpy as np

from superself.basics.random import random_state, set_random_state
from superself.training.checkpoint import plain_dicts


def run_state(run: Any) -> dict[str, Any]:
    """The whole content of NAME.pt: the supervisor, the run, and the random state, as tensors and plain values."""
    states = run.tracker_states or [tracker.state_dict() for tracker in run.trackers]
    return {
        **run.supervisor._state(),
        "step": run.step,
        "epoch": run.epoch,
        "epoch_began": run.epoch_began,
        "epoch_random": run.epoch_random,
        "settings": {**run.settings.describe(), "notes": run.notes, "precision": run.precision},
        "optimizer": plain_dicts(run.optimizer.state_dict()),
        "lr_scheduler": plain_dicts(run.lr_scheduler.state_dict()),
        "sampler": run.sampler.state_dict() if hasattr(run.sampler, "state_dict") else {},
        "metrics": {**run.metrics.state_dict(), "sums": run.parallel.average(run.metrics.sums)},
        "trackers": list(zip([type(tracker).__name__ for tracker in run.trackers], states, strict=True)),
        "guard": run.guard.state_dict(),
        "random": all_random_state(run),
        "random_of_others": run.parallel.gather(all_random_state(run))[1:],
        **run.training_step.state_dict(),
    }


def load_run_state(run: Any, stored: dict[str, Any]) -> None:
    """Continues from a stored state; the weights are loaded by the supervisor."""
    run.step, run.epoch, run.epoch_began = stored["step"], stored["epoch"], stored["epoch_began"]
    run.epoch_random = stored["epoch_random"]
    run.resumed_within_epoch = run.step > run.epoch_began
    run.optimizer.load_state_dict(stored["optimizer"])
    run.lr_scheduler.load_state_dict(stored["lr_scheduler"])
    if stored["sampler"]:
        run.sampler.load_state_dict(stored["sampler"])
    run.parallel.begin(run.step)
    run.count_steps(run.loader)
    run.metrics.load_state_dict(stored["metrics"])
    states = list(stored["trackers"])
    for tracker in run.trackers:
        mine = next((pair for pair in states if pair[0] == type(tracker).__name__), None)
        if mine is not None:
            states.remove(mine)
            tracker.load_state_dict(mine[1])
    run.guard.load_state_dict(stored.get("guard", {}))
    run.training_step.load_state_dict(stored)
    states = [stored["random"], *stored.get("random_of_others", [])]
    run.stored_processes, same = len(states), len(states) == run.parallel.world_size
    set_all_random_state(run, states[run.parallel.rank if same else 0])
    if not same:  # views continue from numbers of their own in each process
        entropy = (stored["seed"], run.epoch, run.step, run.parallel.rank)
        run.supervisor.generator.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))


def all_random_state(run: Any) -> dict[str, Any]:
    """Of all random sources, and of the generator of a user's DataLoader."""
    state, own = random_state(run.supervisor.generator), getattr(run.loader, "generator", None)
    return state if own is None else {**state, "loader": own.get_state()}


def set_all_random_state(run: Any, state: dict[str, Any]) -> None:
    """Restores what ``all_random_state`` returned."""
    set_random_state(state, run.supervisor.generator)
    own = getattr(run.loader, "generator", None)
    if own is not None and "loader" in state:
        own.set_state(state["loader"])
