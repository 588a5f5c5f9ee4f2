"""Lengths of time as users write them: "30s", "5min", "1h", or seconds."""

from __future__ import annotations

import math
import re
from typing import Any

SECONDS = {"s": 1, "sec": 1, "min": 60, "h": 3600}


def parse_duration(name: str, value: Any) -> float | None:
    """The seconds of "30s", "5min", "1.5h" or a number; None stays None.

    Args:
        name: of the argument, for the message.
        value: what was given.
    Raises:
        ValueError: if it is not a length of time above 0.
    """
    if value is None:
        return None
    seconds = math.nan
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", value)
        if found and found[2] in SECONDS:
            seconds = float(found[1]) * SECONDS[found[2]]
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(
            f'{name}={value!r} is not a length of time; pass "30s", "5min", "1h", a number of seconds above 0, or None.'
        )
    return seconds
