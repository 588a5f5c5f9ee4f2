"""Ctrl-C and SIGTERM, held back until the running step is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class FinishStepOnSignal:
    """While it is entered, the first SIGINT or SIGTERM is only noted; a second one ends the program at once.

    A step changes weights, optimiser, averages and banks one after the other; stopped in the middle they would not belong
    together. The loop reads ``received`` between steps, saves, and calls ``leave()``. Outside the main thread, where Python
    allows no handlers, nothing is changed.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> FinishStepOnSignal:
        self.received = None
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    def leave(self) -> None:
        """Raises what the noted signal stands for: KeyboardInterrupt, or SystemExit(143) for SIGTERM."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:
            raise SystemExit(128 + self.received)
