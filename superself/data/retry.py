"""Reads that fail for a moment, as on a network drive, are tried again."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")
PAUSES = (0.05, 0.25)  # seconds before the second and the third attempt
LASTING = {  # numbers of errors that another attempt does not change
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG),
}


class PassingReason(str):
    """Why an image cannot be read now, where it may be readable later: it is tried again in the next epoch."""


def is_input_output_error(error: Exception) -> bool:
    """Whether reading failed, rather than decoding: Pillow reports a damaged image as an OSError without a number."""
    return isinstance(error, (TimeoutError, ConnectionError)) or (
        isinstance(error, OSError) and error.errno is not None
    )


def read_with_retries(read: Callable[[], Result], again: bool = True) -> Result:
    """The result of ``read``, called up to three times if an error of the operating system may pass.

    Args:
        read: a function without arguments.
        again: False calls it once.
    """
    for pause in PAUSES if again else ():
        try:
            return read()
        except OSError as error:
            if not is_input_output_error(error) or error.errno in LASTING:
                raise
        time.sleep(pause)
    return read()
