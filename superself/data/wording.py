"""Names and reasons in messages: printable, one line each, and not too many."""

from __future__ import annotations

from collections.abc import Mapping

LISTED = 10  # broken images that a message names


def printable(text: str) -> str:
    """A text in one line that any file and terminal takes: bytes that are not UTF-8, and control characters, are escaped."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()


def describe_error(error: Exception) -> str:
    """Why an image cannot be read, for the list of skipped images."""
    return printable(f"{type(error).__name__}: {' '.join(str(error).split())}")


def format_broken(broken: Mapping[str, str], listed: int = LISTED) -> str:
    """Broken images with their reasons, as name -> reason, of which the first ones are named."""
    lines = [f"{name} ({why})" for name, why in list(broken.items())[:listed]]
    return "; ".join(lines) + (f"; and {len(broken) - listed} more" if len(broken) > listed else "")


def format_bytes(nbytes: int) -> str:
    """A number of bytes in MiB or GiB."""
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"
