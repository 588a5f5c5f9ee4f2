"""Contestants that take turns: each in a separate process, of which all but one are stopped.

A contestant is a training loop that calls ``Meter.tick`` after every step. The parent orders a number of steps, the loop
runs them and waits. Between its turns the whole process group is stopped (SIGSTOP), including the workers of a data loader,
so that none of them fills its queues while another contestant is timed.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import resource
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

ROUNDS = 8  # turns of each contestant; fewer where steps are long


class Finished(Exception):
    """Ends a contestant's loop."""


@dataclass(frozen=True)
class Window:
    """A turn: timed steps, their seconds, and the seconds from the last step of an epoch to the first step of the next."""

    steps: int
    seconds: float
    gaps: tuple[float, ...] = ()


class Meter:
    """Times the steps of the loop that calls it, in windows that the parent orders.

    The first step of an epoch and the time between epochs are not counted; the latter is reported as a gap. The meter
    waits for the device only at the ends of windows and epochs.
    """

    def __init__(self, connection: Connection, device: torch.device) -> None:
        self.connection, self.device = connection, device
        self.began: float | None = None  # start of the steps that are being timed
        self.ended: float | None = None  # end of the last epoch
        self._open()

    def tick(self, last: bool = False) -> None:
        """Counts a step, the ``last`` of its epoch or not, and returns when the parent wants the next one.

        Raises:
            Finished: if it wants no more steps.
        """
        self.done += 1
        self.steps += self.began is not None
        if self.began is None or last or self.done == self.wanted:
            now = self._now()
            if self.ended is not None:
                self.gaps.append(now - self.ended)
            self.seconds += 0.0 if self.began is None else now - self.began
            self.began, self.ended = (None, now) if last else (now, None)
        if self.done == self.wanted:
            self.connection.send(Window(self.steps, self.seconds, tuple(self.gaps)))
            self._open()
            self.began, self.ended = (None, self._now()) if last else (self._now(), None)

    def _open(self) -> None:
        self.wanted = self.connection.recv()
        if not self.wanted:
            self.connection.send(peak_memory(self.device))
            raise Finished
        self.done = self.steps = 0
        self.seconds, self.gaps = 0.0, []

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def peak_memory(device: torch.device) -> dict[str, float]:
    """MiB: peak of this process, what its workers now share with no other process, and peak on the GPU."""
    workers = [private_memory(child.pid) for child in multiprocessing.active_children()]
    on_gpu = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    return {"process": process_peak(), "workers": sum(workers), "device": on_gpu}


def process_peak() -> float:
    """MiB; not from getrusage where possible, because that includes the size of the parent process at the start."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def private_memory(pid: int | None) -> float:
    """MiB that a process shares with no other process."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 2**10
    return math.nan


class Contestant:
    """A loop in a separate process, which only runs during its turns.

    Args:
        name: in the table.
        loop: ``f(meter, *arguments)``, a function of a module; calls ``meter.tick`` after each step and never ends.
        arguments: plain values.
        device: where it computes.
    """

    def __init__(self, name: str, loop: Callable[..., None], arguments: Sequence[Any], device: torch.device) -> None:
        self.name, self.step_seconds = name, math.nan
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_run, args=(theirs, loop, arguments, device))
        self.process.start()
        theirs.close()

    def turn(self, steps: int) -> Window:
        """Runs a number of steps."""
        return self._ask(steps)

    def warm_up(self, seconds: float) -> None:
        """Runs steps for that long, at least one, and stores how long a step of the last window took."""
        began = time.perf_counter()
        window = self.turn(1)
        while time.perf_counter() - began < seconds or not window.steps:
            window = self.turn(max(2, math.ceil(seconds / 4 / max(window.seconds, 1e-4))))
        self.step_seconds = window.seconds / window.steps

    def finish(self) -> dict[str, float]:
        """Ends the loop and returns its peak memory."""
        memory = self._ask(0)
        self._signal(signal.SIGCONT)
        self.process.join(10)
        return memory

    def close(self) -> None:
        """Kills the process and its workers."""
        self._signal(signal.SIGKILL)
        self.process.join()
        self.connection.close()

    def _ask(self, order: int) -> Any:
        self._signal(signal.SIGCONT)
        try:
            self.connection.send(order)
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError(f"the process of {self.name} ended unexpectedly; its error is printed above.") from error
        self._signal(signal.SIGSTOP)
        return answer

    def _signal(self, number: int) -> None:
        """Sends a signal to the process and its workers, which form a group; before there is a group, to the process."""
        with contextlib.suppress(ProcessLookupError):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                os.kill(self.process.pid, number)


def _run(connection: Connection, loop: Callable[..., None], arguments: Sequence[Any], device: torch.device) -> None:
    os.setpgid(0, 0)  # not setsid: the kernel ends a stopped group of the same session when the parent dies
    with contextlib.suppress(Finished):
        loop(Meter(connection, device), *arguments)


def take_turns(contestants: Sequence[Contestant], deadline: float, rounds: int = ROUNDS) -> dict[str, list[Window]]:
    """The windows of each contestant: A B C A B C ... until the deadline (of ``time.perf_counter``), at least one turn each.

    Windows without a timed step are left out.
    """
    for contestant in contestants:
        contestant.turn(1)  # builds everything, while the next ones still import
    turn = (deadline - time.perf_counter()) / rounds / len(contestants)
    for contestant in contestants:
        contestant.warm_up(min(2.0, max(0.1, turn)))
    windows: dict[str, list[Window]] = {contestant.name: [] for contestant in contestants}
    turn = (deadline - time.perf_counter()) / rounds / len(contestants)
    longest = 0.0
    while not longest or time.perf_counter() + longest <= deadline:
        began = time.perf_counter()
        for contestant in contestants:
            window = contestant.turn(steps_in(turn, contestant.step_seconds))
            if window.steps:
                windows[contestant.name].append(window)
        longest = max(longest, time.perf_counter() - began)
    return windows


def steps_in(seconds: float, step_seconds: float) -> int:
    """Steps that fit into a turn; at least one."""
    return max(1, int(seconds / step_seconds))


def rates(windows: Sequence[Window], batch_size: int) -> list[float]:
    """Images per second of each window."""
    return [window.steps * batch_size / window.seconds for window in windows]


def between_epochs(windows: Sequence[Window]) -> float | None:
    """Seconds between two epochs, without the first step of the second one; None if no epoch ended."""
    gaps = [gap for window in windows for gap in window.gaps]
    step = statistics.median(window.seconds / window.steps for window in windows) if windows else 0.0
    return max(0.0, statistics.median(gaps) - step) if gaps else None
