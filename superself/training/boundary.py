"""StepBoundary: what a step changes before the optimizer steps, kept so that the step can be undone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from superself.basics.random import random_sources
from superself.training.stored_state import set_all_random_state

Place = tuple[dict[str, Any], str]  # the buffers of a module, and the name of one of them


class StepBoundary:
    """The state between two steps, apart from what only the optimizer step and ``_after_step`` change.

    After an exception in the middle of a step, or a loss that is not finite, the run can be taken back to the end of the step
    before, as long as the optimizer has not stepped: until then a step only draws random numbers, adds metrics, and changes
    some buffers, such as the running averages of batch norm. Which buffers and random sources these are is found in the
    first step of each epoch, so that later steps copy nothing else.

    Args:
        run: whose supervisor, metrics and loader are kept.
    """

    def __init__(self, run: Any) -> None:
        self.run = run
        self.is_open = False  # whether the run can be taken back to the last ``mark``
        self.counts = (0, 0, 0)  # step, epoch, and step at which the epoch began, at the last mark
        self._is_first = False  # whether this is the first step of an epoch
        self._groups: list[tuple[list[Place], list[Tensor]]] = []  # buffers that a forward pass changes, by type
        self._drawn: dict[str, Any] = {}  # states of the random sources that a step draws from, at the last mark
        self._unused: dict[str, Any] = {}  # of the others, at the first mark of the epoch

    def begin_epoch(self) -> None:
        """Before the first batch of an epoch, or of what is left of it."""
        self._is_first = True
        self._sources = random_sources(self.run.supervisor.generator)
        if getattr(self.run.loader, "generator", None) is not None:
            self._sources["loader"] = self.run.loader.generator.get_state
        self._drawn, self._unused = {}, {name: get() for name, get in self._sources.items()}
        self._keep()

    def forward(self, data: Any) -> Tensor:
        """Calls the networks; in the first step of an epoch, it notes which of their buffers change."""
        if not self._is_first:
            return self.run.training_step.forward(data)
        modules = self.run.supervisor.modules()
        places = [(m._buffers, name) for m in modules for name, buffer in m._buffers.items() if buffer is not None]
        before = [buffers[name].detach().clone() for buffers, name in places]
        try:
            return self.run.training_step.forward(data)
        finally:
            groups: dict[Any, tuple[list[Place], list[Tensor]]] = {}
            for (buffers, name), old in zip(places, before, strict=True):
                if not _is_equal(buffers[name], old):
                    group = groups.setdefault((old.device, old.dtype), ([], []))
                    group[0].append((buffers, name))
                    group[1].append(old)
            self._groups = list(groups.values())

    def mark(self) -> None:
        """Keeps the state at the end of a step."""
        if self._is_first:
            now = {name: get() for name, get in self._sources.items()}
            self._drawn = {name: value for name, value in now.items() if not _is_equal(value, self._unused[name])}
            self._unused = {name: value for name, value in now.items() if name not in self._drawn}
            self._is_first = False
        else:
            self._drawn = {name: self._sources[name]() for name in self._drawn}
        self._keep()

    def leave(self) -> None:
        """The optimizer steps: the state is incomplete until the next ``mark``."""
        self.is_open = False

    @torch.no_grad()
    def undo_forward(self) -> None:
        """Takes buffers and metrics back to the last mark."""
        for places, kept in self._groups:
            for (buffers, name), old in zip(places, kept, strict=True):
                buffers[name] = buffers[name].copy_(old) if buffers[name].shape == old.shape else old.clone()
        self.run.metrics.sums, self.run.metrics.counts = map(dict, self._metrics)

    def restore(self) -> bool:
        """Takes the run back to the last mark. False, and nothing is changed, where that is impossible."""
        run = self.run
        if not self.is_open:
            return False
        now = {name: get() for name, get in self._sources.items()}
        if not all(_is_equal(now[name], value) for name, value in self._unused.items()):
            return False  # a source that the first step did not draw from
        self.undo_forward()
        run.step, run.epoch, run.epoch_began = self.counts
        set_all_random_state(run, {**now, **self._drawn})
        return True

    @torch.no_grad()
    def _keep(self) -> None:
        run = self.run
        self.counts = run.step, run.epoch, run.epoch_began
        self._metrics = dict(run.metrics.sums), dict(run.metrics.counts)
        for places, kept in self._groups:
            live = [buffers[name] for buffers, name in places]
            try:
                torch._foreach_copy_(kept, live)
            except RuntimeError:  # a buffer of another shape than before
                kept[:] = [buffer.detach().clone() for buffer in live]
        self.is_open = True


def _is_equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_is_equal, one, other))
    return one == other
