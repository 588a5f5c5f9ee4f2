"""Checks of hyper-parameters: each error says what the argument must be, what was passed and what the argument does.

All of them reject booleans, NaN and infinity: ``True`` where a number is needed is nearly always a misplaced argument.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


def require_positive(name: str, value: Any, meaning: str = "") -> None:
    """Checks that ``value`` is a finite number above 0.

    Args:
        name: of the argument.
        value: what the user passed.
        meaning: what the argument does, in words that follow "it": "divides similarities"; "" leaves it out.

    Raises:
        TypeError: if ``value`` is not a number.
        ValueError: if it is not above 0.
    """
    need = "a number above 0"
    _require_number(name, value, need, meaning)
    if not 0 < value < math.inf:
        raise ValueError(_sentence(name, need, value, meaning))


def require_nonnegative(name: str, value: Any, meaning: str = "") -> None:
    """Checks that ``value`` is a finite number of at least 0; see ``require_positive``."""
    need = "a number of at least 0"
    _require_number(name, value, need, meaning)
    if not 0 <= value < math.inf:
        raise ValueError(_sentence(name, need, value, meaning))


def require_fraction(
    name: str, value: Any, meaning: str = "", *, lower_open: bool = False, upper_open: bool = False
) -> None:
    """Checks that ``value``, a number or a Schedule, lies between 0 and 1.

    Args:
        name: of the argument.
        value: what the user passed.
        meaning: what the argument does, as in ``require_positive``.
        lower_open: 0 is not allowed.
        upper_open: 1 is not allowed.

    Raises:
        TypeError: if ``value`` is not a number.
        ValueError: if it is out of range.
    """
    if callable(getattr(value, "bounds", None)):  # a Schedule: what it reaches during the run
        for bound in value.bounds():
            require_fraction(name, bound, meaning, lower_open=lower_open, upper_open=upper_open)
        return
    need = f"a number in {'(' if lower_open else '['}0, 1{')' if upper_open else ']'}"
    _require_number(name, value, need, meaning)
    above = value > 0 if lower_open else value >= 0
    below = value < 1 if upper_open else value <= 1
    if not (above and below):
        raise ValueError(_sentence(name, need, value, meaning))


def require_count(name: str, value: Any, meaning: str = "", *, minimum: int = 1, maximum: int | None = None) -> None:
    """Checks that ``value`` is an integer of at least ``minimum``, and at most ``maximum``; see ``require_positive``."""
    need = f"an integer of at least {minimum}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(_sentence(name, need, f"{shortened(value)} of type {type(value).__name__}", meaning))
    if value < minimum:
        raise ValueError(_sentence(name, need, value, meaning))
    if maximum is not None and value > maximum:
        raise ValueError(_sentence(name, f"an integer of at most {maximum}", value, meaning))


def require_number(name: str, value: Any, meaning: str = "") -> None:
    """Checks that ``value`` is a finite number; see ``require_positive``."""
    need = "a finite number"
    _require_number(name, value, need, meaning)
    if not -math.inf < value < math.inf:
        raise ValueError(_sentence(name, need, value, meaning))


def require_bool(name: str, value: Any, meaning: str = "") -> None:
    """Checks that ``value`` is True or False.

    Raises:
        TypeError: if it is anything else, numbers and strings included.
    """
    if not isinstance(value, bool):
        raise TypeError(_sentence(name, "True or False", shortened(value), meaning))


def require_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Checks that ``value`` is one of ``choices``.

    Raises:
        ValueError: if it is not; the message lists them.
    """
    choices = list(choices)
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        *others, last = map(repr, choices)
        listed = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"{name}={shortened(value)} is unknown; pass {listed}.")


def require_callable(name: str, value: Any, *arguments: str) -> None:
    """Checks that ``value`` is a function, module or other object that can be called with these arguments.

    Args:
        name: of the argument.
        value: what the user passed.
        arguments: that it is called with, in words for the message; none leaves their number open.

    Raises:
        TypeError: if it is a class, or cannot be called like that.
    """
    if isinstance(value, type):
        raise TypeError(
            f"{name}={shortened(value)} is a class; pass an instance, {value.__name__}(...), or a function."
        )
    if not callable(value):
        raise TypeError(f"{name}={shortened(value)} cannot be called; pass a function or a module.")
    if not arguments:
        return
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # some functions written in C have no signature
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(
            f"{name} is called with {' and '.join(arguments)}, and the signature of what was passed is {signature} ({error}); "
            "pass a function that takes that."
        ) from error


def shortened(value: Any) -> str:
    """``repr(value)`` on one line, cut off after 100 characters: a tensor or a network would fill the screen."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:100]}..."


def _require_number(name: str, value: Any, need: str, meaning: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(_sentence(name, need, f"{shortened(value)} of type {type(value).__name__}", meaning))


def _sentence(name: str, need: str, given: Any, meaning: str) -> str:
    return f"{name} must be {need}, got {given}{f' (it {meaning})' if meaning else ''}."
