"""The random state of torch, numpy, Python and the run: seed it, save it, restore it, preserve it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

LARGEST_SEED = 2**62  # torch's generators take a little more, and each process adds its rank


def seed_everything(seed: int, generator: torch.Generator | None = None) -> None:
    """Seeds torch, numpy, Python's random and, if given, the ``generator`` of the run."""
    torch.manual_seed(seed)
    if generator is not None:
        generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def random_sources(generator: torch.Generator) -> dict[str, Callable[[], Any]]:
    """A function for each random source used in training, which returns its state as values that a checkpoint can contain.

    Args:
        generator: the generator of the run, from which views are drawn.
    """
    sources: dict[str, Callable[[], Any]] = {
        "run": generator.get_state,
        "torch": torch.get_rng_state,
        "numpy": _numpy_state,
        "python": random.getstate,
    }
    if torch.cuda.is_available():
        sources["cuda"] = torch.cuda.get_rng_state_all
    return sources


def random_state(generator: torch.Generator) -> dict[str, Any]:
    """The states of all ``random_sources``."""
    return {name: get() for name, get in random_sources(generator).items()}


def set_random_state(state: dict[str, Any], generator: torch.Generator) -> None:
    """Restores all random sources to the state returned by ``random_state``."""
    generator.set_state(state["run"])
    torch.set_rng_state(state["torch"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


@contextlib.contextmanager
def preserve_random_state(seed: int | None = None, generator: torch.Generator | None = None) -> Iterator[None]:
    """Restores every random state at the end, so that code inside may draw random numbers without consequences.

    Args:
        seed: what all sources start from inside; None lets them continue.
        generator: a run's own generator, which is seeded and restored too.
    """
    generator = torch.Generator() if generator is None else generator
    before = random_state(generator)
    try:
        if seed is not None:
            seed_everything(seed, generator)
        yield
    finally:
        set_random_state(before, generator)


def _numpy_state() -> tuple[Any, ...]:
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached
