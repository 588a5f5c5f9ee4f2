"""Handles Ctrl-C and SIGTERM only after the current training step is complete."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class FinishStepOnSignal:
    """Context manager in which the first SIGINT or SIGTERM is only recorded; the second one raises KeyboardInterrupt at once.

    A training step changes weights, optimizer state, averages and banks one after the other, and stopping halfway would leave
    them inconsistent. The training loop reads ``received`` between steps, stores the run, and calls ``leave()``. Outside the
    main thread, where Python does not allow signal handlers, nothing changes.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> FinishStepOnSignal:
        self.received = None
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._record) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    def leave(self) -> None:
        """Raises what the recorded signal asks for, if there is one: KeyboardInterrupt, or SystemExit(143) for SIGTERM."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:
            raise SystemExit(128 + self.received)
