"""What the processes of a run exchange, and who writes; in a single process nothing is wrapped and nothing is exchanged."""

from __future__ import annotations

import contextlib
import datetime
import pickle
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from superself.basics.distributed import alone

TIMEOUT = datetime.timedelta(minutes=10)  # a process that does not answer for so long ends the run with an error
PATIENCE = datetime.timedelta(days=7)  # how long the others wait while process 0 measures and saves
ANSWER = datetime.timedelta(seconds=5)  # for processes to answer once the communication has failed
EXCHANGE_SECONDS = 0.5  # about how often processes exchange whether to stop
LOST = re.compile(r"gloo|nccl|timed out|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)

T = TypeVar("T")
_groups: dict[str, Any] = {}  # of this process, from the first supervise() to its end


class Parallel:
    """What a run has to know of the other processes; in a single process every method returns at once what it is given.

    All methods but ``due``, ``stops``, ``share_value`` and ``devices`` are collective: every process must call them.

    Args:
        device: of this process.
        devices: of a run with ``strategy="dp"``; empty otherwise.
    """

    def __init__(self, device: torch.device, devices: Sequence[torch.device] = ()) -> None:
        several = is_open()
        self.device, self.devices = device, tuple(devices)
        self.world_size = distributed.get_world_size() if several else 1
        self.rank = distributed.get_rank() if several else 0
        self.stop: int | None = None  # the signal that all processes agreed to stop after
        self._save = False  # whether a process asked to save in the last exchange
        self.begin(0)

    @property
    def is_first(self) -> bool:
        """Whether this process writes, prints and measures."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are other processes."""
        return self.world_size > 1

    # ---- values ------------------------------------------------------------------------------------------------------

    def agree(self, flag: bool) -> bool:
        """Whether ``flag`` is true in any process. Use it before every branch that contains or skips collective calls."""
        return bool(self.largest(int(flag)))

    def largest(self, number: int) -> int:
        """The largest ``number`` of all processes."""
        if not self.several:
            return number
        shared = torch.tensor(number)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX, group=_groups["control"])
        return int(shared)

    def gather(self, value: T) -> list[T]:
        """The plain values of all processes, in the order of their ranks."""
        if not self.several:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value, group=_groups["control"])
        return values

    def broadcast(self, value: T) -> T:
        """The plain value of process 0; the others wait for it as long as it takes."""
        if not self.several:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0, group=_groups["patient"])
        return values[0]

    def average(self, row: dict[str, Any]) -> dict[str, Any]:
        """``row`` with the mean over processes in place of every float or scalar tensor that all of them have."""
        if not self.several:
            return dict(row)
        rows = self.gather({name: float(value) for name, value in row.items() if isinstance(value, (float, Tensor))})
        means = {name: sum(other[name] for other in rows) / len(rows) for name in set.intersection(*map(set, rows))}
        return {
            name: value.new_tensor(means[name])
            if isinstance(value, Tensor) and name in means
            else means.get(name, value)
            for name, value in row.items()
        }

    def share_value(self, loss: Any) -> Any:
        """The loss with its own gradient and the mean value over processes, so that all see the same number, or the same NaN."""
        if not self.several or not isinstance(loss, Tensor) or loss.ndim:
            return loss
        mean = loss.detach().clone()
        distributed.all_reduce(mean)
        return loss - loss.detach() + mean / self.world_size

    # ---- when to exchange, and when to stop --------------------------------------------------------------------------

    def due(self, step: int, due_here: bool) -> bool:
        """Whether processes exchange after this step: at the same steps in all of them, about every EXCHANGE_SECONDS."""
        return step >= self._next_exchange if self.several else due_here

    def exchange(self, step: int, received: int | None, save: bool = False) -> None:
        """Learns of signals that other processes received, whether one wants to save, and fixes the next exchange."""
        if not self.several:
            return
        before, then = self._last_exchange
        self._last_exchange = step, time.perf_counter()
        seconds = max(time.perf_counter() - then, 1e-6) / max(step - before, 1)  # per step
        shared = torch.tensor([received or 0, max(1, round(EXCHANGE_SECONDS / seconds)), int(save)])
        distributed.all_reduce(shared, distributed.ReduceOp.MAX, group=_groups["control"])
        signal, interval, save = shared.tolist()
        self.stop, self._save = signal or None, bool(save)
        self._next_exchange = step + interval

    def begin(self, step: int) -> None:
        """The run starts, continues or goes back to this step: processes exchange after the next one."""
        self._next_exchange, self._last_exchange = step + 1, (step, time.perf_counter())

    def stops(self, received: int | None) -> int | None:
        """The signal to stop after: ``received`` in a single process, otherwise what the last exchange agreed on."""
        return self.stop if self.several else received

    def saves(self, save: bool) -> bool:
        """Whether to store the run now: ``save`` in a single process, otherwise once after an exchange in which one asked."""
        if not self.several:
            return save
        agreed, self._save = self._save, False
        return agreed

    # ---- work of process 0 -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def solo(self, module: nn.Module | None = None) -> Iterator[None]:
        """For work of process 0: inside, it counts as the only one; the others wait, and raise what it raises.

        Args:
            module: whose SyncBatchNorm layers process 0 must be able to run without the others.
        """
        if not self.several:
            yield
            return
        error: BaseException | None = None
        try:
            with alone() if self.is_first else contextlib.nullcontext(), _separate_batch_norms(self, module):
                yield
        except BaseException as raised:
            if not self.is_first:
                raise
            error = raised
        reported = self.broadcast(_picklable(error))
        if error is not None:
            raise error
        if reported is not None:
            raise reported

    # ---- weights -----------------------------------------------------------------------------------------------------

    def synchronize(self, module: nn.Module) -> None:
        """Gives every process the parameters and buffers of process 0."""
        if not self.several:
            return
        tensors = [t.detach() for t in (*module.parameters(), *module.buffers()) if t.numel()]
        copies = [t.contiguous() for t in tensors]  # itself, unless its memory format is another
        for work in [distributed.broadcast(copy, src=0, async_op=True) for copy in copies]:
            work.wait()
        for tensor, copy in zip(tensors, copies, strict=True):
            if copy is not tensor:
                tensor.copy_(copy)

    def wrap(self, module: nn.Module, trained: Sequence[Tensor], find_unused: bool = False) -> nn.Module:
        """What the loop calls: ``module``, or DistributedDataParallel around it, which averages the gradients.

        Args:
            module: the supervisor.
            trained: parameters of the optimizer; all others get no gradient from other processes.
            find_unused: whether there are steps in which a trained parameter gets no gradient.
        """
        if not self.several:
            return module
        from torch.nn.parallel import DistributedDataParallel

        kept = {id(parameter) for parameter in trained}
        ignored = [name for name, p in module.named_parameters() if id(p) not in kept]
        ignored += [name for name, _ in module.named_buffers()]  # ``synchronize`` has sent them
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ignored)
        try:
            return DistributedDataParallel(module, find_unused_parameters=find_unused, gradient_as_bucket_view=True)
        finally:
            del module._ddp_params_and_buffers_to_ignore

    @torch.no_grad()
    def average_running_statistics(self, module: nn.Module, averaged: dict[str, Tensor] | None = None) -> None:
        """Replaces the running statistics of batch norms by their means over processes, so that these agree.

        Without ``sync_batchnorm`` each process keeps those of its own batches.

        Args:
            module: the supervisor.
            averaged: the moving average of a network, whose running statistics are treated alike.
        """
        if not self.several:
            return
        norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
        buffers += [v for name, v in (averaged or {}).items() if name.endswith(("running_mean", "running_var"))]
        if not buffers:
            return
        sums = torch.cat([buffer.double() for buffer in buffers])
        distributed.all_reduce(sums)
        sizes = [len(buffer) for buffer in buffers]
        for buffer, values in zip(buffers, sums.div_(self.world_size).split(sizes), strict=True):
            buffer.copy_(values)

    @torch.no_grad()
    def require_equal_weights(self, module: nn.Module) -> None:
        """Raises a RuntimeError if the trained weights of two processes differ, so that they train apart."""
        if not self.several:
            return
        sums = self.gather(sum(p.abs().double().sum().item() for p in module.parameters() if p.requires_grad))
        if max(sums) - min(sums) > 1e-6 * max(abs(max(sums)), 1e-12):
            raise RuntimeError(
                f"the weights of the processes differ (sums of absolute values: {', '.join(f'{s:.6g}' for s in sums)}), because "
                "gradients were not averaged; let the loop call run.forward(data), not _forward(data), and do not change "
                "weights in only one process."
            )

    def require_equal(self, name: str, value: Any) -> None:
        """Raises a ValueError in every process if ``value`` is not the same in all of them."""
        values = self.gather(value)
        other = next((rank for rank, theirs in enumerate(values) if theirs != values[0]), None)
        if other is not None:
            raise ValueError(
                f"{name} is {values[0]!r} in process 0 and {values[other]!r} in process {other}; start every "
                "process with the same script and the same files."
            )

    # ---- failures ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def naming_lost_processes(self) -> Iterator[None]:
        """Turns an error of the communication into one that says what to do, and which process does not answer."""
        try:
            yield
        except RuntimeError as error:
            if self.several and "finished reduction in the prior iteration" in str(error):
                raise RuntimeError(
                    "a trained parameter got no gradient in the last step, for which the other processes wait; let every "
                    "parameter take part in every loss, or set skips_parameters = True in the class of the supervisor."
                ) from error
            if not (self.several and LOST.search(str(error))):
                raise
            raise RuntimeError(
                f"process {self.rank} of {self.world_size} stops because {_who_is_missing()} (a process that does not answer for "
                f"{TIMEOUT} ends the run); look for its own error in the output above, and start again with "
                'resume="auto" to continue from the last stored state.'
            ) from error


def is_open() -> bool:
    """Whether ``open_groups`` has been called and the communication still exists."""
    if _groups and not distributed.is_initialized():
        _groups.clear()
    return bool(_groups)


def open_groups() -> None:
    """Makes the groups that processes exchange plain values in, after the communication has been started."""
    for name, timeout in (("control", TIMEOUT), ("patient", PATIENCE), ("alarm", ANSWER)):
        _groups[name] = distributed.new_group(backend="gloo", timeout=timeout)
    _groups["first"] = distributed.new_group([0], backend="gloo")


def leave() -> None:
    """Closes the connections at the end of the process."""
    _groups.clear()
    if distributed.is_initialized() and getattr(sys, "last_exc", getattr(sys, "last_value", None)) is None:
        with contextlib.suppress(RuntimeError):  # the others may have gone
            distributed.destroy_process_group()


def _who_is_missing() -> str:
    """Which processes do not answer a call that those with an error make at about the same time."""
    try:
        distributed.monitored_barrier(_groups["alarm"], timeout=ANSWER, wait_all_ranks=True)
    except RuntimeError as error:
        found = re.search(r"Ranks ([\d, ]+) failed", str(error))
        named = found.group(1).strip(", ").split(",") if found else ["0"] if distributed.get_rank() else []
        if named:
            return f"process {', '.join(number.strip() for number in named)} does not answer"
    return "another process has ended"


@contextlib.contextmanager
def _separate_batch_norms(parallel: Parallel, module: nn.Module | None) -> Iterator[None]:
    """Inside, torch's SyncBatchNorm layers of process 0 do not wait for the others."""
    layers = [m for m in module.modules() if isinstance(m, nn.SyncBatchNorm)] if module and parallel.is_first else []
    groups = [layer.process_group for layer in layers]
    for layer in layers:
        layer.process_group = _groups["first"]
    try:
        yield
    finally:
        for layer, group in zip(layers, groups, strict=True):
            layer.process_group = group


def _picklable(error: BaseException | None) -> BaseException | None:
    """An error that can be sent to the other processes."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"process 0 stopped with {type(error).__name__}: {error}")
    return error
