"""The state of random number generators: seeded, saved, restored and preserved."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int, generator: torch.Generator | None = None) -> None:
    """Seeds torch, numpy, Python's random module and, if given, the ``generator`` of the run."""
    torch.manual_seed(seed)
    if generator is not None:
        generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def random_state(generator: torch.Generator) -> dict[str, Any]:
    """The state of all random number generators that training uses, as plain values for a checkpoint.

    Args:
        generator: the generator of the run, from which views are drawn.
    """
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "run": generator.get_state(),
        "torch": torch.get_rng_state(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any], generator: torch.Generator) -> None:
    """Restores what ``random_state`` returned."""
    generator.set_state(state["run"])
    torch.set_rng_state(state["torch"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


@contextlib.contextmanager
def preserve_random_state(seed: int | None = None) -> Iterator[None]:
    """Restores the global random state on exit, so that code inside may draw numbers, from ``seed`` if it is given."""
    unused = torch.Generator()
    before = random_state(unused)
    try:
        if seed is not None:
            seed_everything(seed)
        yield
    finally:
        set_random_state(before, unused)
