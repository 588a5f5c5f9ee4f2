"""Signals: finishes the current training step before a signal ends the run."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

# Handled only where their default action would end the process: nohup, schedulers and users may have set another one.
OTHERS = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGXCPU", "SIGUSR1") if hasattr(signal, name))
SAVES = getattr(signal, "SIGUSR1", None)  # stores the run, which continues
REPEATED = (
    0.5  # seconds in which a signal counts as the same one: it may reach a process directly and through its group
)


class FinishStepOnSignal:
    """Context manager in which the first signal to stop is only recorded; a second one ends the run at once.

    A training step changes weights, optimizer state, averages and banks one after the other, and stopping halfway would leave
    them inconsistent. The training loop reads ``received`` between steps, stores the run, and calls ``leave()``. It does so
    after SIGINT, SIGTERM, SIGHUP and SIGXCPU; SIGUSR1 sets ``asked_to_save``. Outside the main thread, where Python does not
    allow signal handlers, nothing changes.

    Args:
        announce: called with the number of the first signal, at once.
    """

    def __init__(self, announce: Callable[[int], None] | None = None) -> None:
        self.announce = announce
        self.received: int | None = None
        self.twice = False  # whether a second signal came
        self.asked_to_save = False
        self.is_waiting = False  # whether the loop waits for data, between two steps
        self._since = 0.0
        self._dead_child: tuple[int, FrameType | None] | None = None
        self._children: Any = None  # the handler of SIGCHLD that is held back
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> FinishStepOnSignal:
        self.received, self.twice, self.asked_to_save = None, False, False
        if threading.current_thread() is threading.main_thread():
            others = [number for number in OTHERS if signal.getsignal(number) is signal.SIG_DFL]
            for number in (signal.SIGINT, signal.SIGTERM, *others):
                self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous, self._children = {}, None

    def _record(self, number: int, frame: FrameType | None) -> None:
        if number == SAVES:
            self.asked_to_save = True
            return
        now = time.monotonic()
        if self.received is not None:
            if now - self._since > REPEATED:
                self.twice = True
                self._raise(number)
            return
        self.received, self._since = number, now
        if self.announce is not None:
            self.announce(number)

    def leave(self) -> None:
        """Raises what the recorded signal asks for, if there is one: KeyboardInterrupt, or SystemExit(143) for SIGTERM."""
        if self.received is not None:
            self._raise(self.received)

    def _raise(self, number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    def hold_back_children(self) -> None:
        """From now on, what torch does when a loader's worker dies, raising an error, waits until the step is complete."""
        if not self._previous or not hasattr(signal, "SIGCHLD"):
            return
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and handler != self._on_child:
            self._children = handler
            self._previous.setdefault(signal.SIGCHLD, handler)
            signal.signal(signal.SIGCHLD, self._on_child)

    def _on_child(self, number: int, frame: FrameType | None) -> None:
        self._dead_child = number, frame
        self.report_children()

    def report_children(self) -> None:
        """Between two steps: raises what was held back."""
        if self.is_waiting and self._dead_child is not None and self._children is not None:
            child, self._dead_child = self._dead_child, None
            self._children(*child)


def leave_signals_to_parent(worker: int = 0) -> None:
    """Makes a loader's worker process ignore the signals that its parent handles; called in the worker when it starts.

    A signal to the whole process group, as schedulers and terminals send it, would end the workers before the parent has
    stored the run. SIGTERM still ends a worker when it comes from the parent, which stops its workers when it exits.

    Args:
        worker: its number, which is not used.
    """
    for number in (signal.SIGINT, *OTHERS):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_if_parent_asks, args=(os.getppid(),), daemon=True).start()


def _end_if_parent_asks(parent: int) -> None:
    while True:
        sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
        if sender == parent or os.getppid() != parent:
            os._exit(0)
