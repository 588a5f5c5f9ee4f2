"""What is printed during a run: an output that is closed, full or broken never ends it."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import sys
from typing import TextIO

BROKEN_OUTPUT = (OSError, ValueError, AttributeError)  # a full disk or broken pipe, a closed file, None
TRANSIENT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a log on a full disk goes on once there is space
_flushed_at_exit: set[int] = set()  # descriptors


def print_line(text: str) -> None:
    """Prints a line. Characters that the output cannot encode are replaced, and an output that fails is ignored."""
    stream = sys.stdout
    if stream is None:  # closed by the shell: python train.py >&-
        return
    try:
        try:
            stream.write(f"{text}\n")
        except UnicodeEncodeError as error:
            stream.write(text.encode(error.encoding, "replace").decode(error.encoding) + "\n")
        stream.flush()
    except BROKEN_OUTPUT as error:
        ignore_broken_stream(stream, error)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is shown to someone, rather than closed, a file or a pipe."""
    try:
        return stream is not None and stream.isatty()
    except BROKEN_OUTPUT:
        return False


def ignore_broken_stream(stream: TextIO, error: Exception) -> None:
    """Lets what is still buffered go nowhere, so that Python does not fail when it flushes the stream at exit.

    A pipe without a reader does not come back, so that all further output of the process is discarded as well. A full disk
    may: there, only what cannot be written when the process ends is discarded.
    """
    with contextlib.suppress(*BROKEN_OUTPUT):
        descriptor = stream.fileno()
        if getattr(error, "errno", None) not in TRANSIENT:
            _discard(descriptor)
        elif descriptor not in _flushed_at_exit:
            _flushed_at_exit.add(descriptor)
            atexit.register(_flush_or_discard, stream, descriptor)


def prepare_standard_streams() -> None:
    """Makes closed outputs harmless; call it before files are opened.

    A descriptor from 0 to 2 that is closed would become the next file that is opened, possibly a checkpoint, and whatever a
    library prints to stdout or stderr would be written into it. A stream object that is closed makes every ``print`` and
    every warning fail, and None in its place makes them do nothing.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            _discard(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(getattr(sys, name), "closed", False):
            setattr(sys, name, None)


def _flush_or_discard(stream: TextIO, descriptor: int) -> None:
    try:
        stream.flush()
    except BROKEN_OUTPUT:
        _discard(descriptor)


def _discard(descriptor: int) -> None:
    """Makes ``descriptor`` the null device."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
