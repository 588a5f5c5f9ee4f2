"""Functions in a process of their own, which may be killed; forked, since importing torch again takes seconds."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable


def start(function: Callable[[], object]) -> int:
    """Calls ``function`` in a forked process and returns its number; its exit status is 1 after an exception."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(child: int) -> int:
    """The exit status of a process, or minus the number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_another_process(function: Callable[[], object]) -> int:
    """The exit status of a process that calls ``function``."""
    return wait(start(function))
