"""What a supervisor class declares: its complete signature, the arguments that were passed, misspelt names."""

from __future__ import annotations

import difflib
import inspect
from abc import ABCMeta
from collections.abc import Callable
from typing import Any

import numpy as np

from superself.basics.former_names import new_name

VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


class BuildAfterInit(ABCMeta):
    """Metaclass: ``_build_networks()`` runs once the outermost ``__init__`` has returned.

    So a constructor only stores what it was given, subclasses with a constructor of their own included, and networks are
    built when every hyper-parameter is known. It also gives each class its complete signature.
    """

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> None:
        super().__init__(name, bases, namespace)
        if "__init__" in namespace:
            cls.__init__.__signature__ = complete_signature(cls)
            cls.__init__.__doc__ = cls.__init__.__doc__ or cls.__doc__
            parameters = list(cls.__init__.__signature__.parameters.values())
            cls.__signature__ = inspect.Signature(parameters[1:])  # without self

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        args = tuple(_python_number(value) for value in args)
        kwargs = {name: _python_number(value) for name, value in kwargs.items()}
        instance = cls.__new__(cls, *args, **kwargs)
        instance.__dict__["_passed"] = passed_names(cls.__init__, instance, args, kwargs)
        instance.__init__(*args, **kwargs)
        if "given" not in vars(instance):
            raise TypeError(f"{cls.__name__}.__init__ did not call super().__init__(dataset=..., ...); call it first.")
        instance._build_networks()
        return instance


def _python_number(value: Any) -> Any:
    """A NumPy number as Python's, which checkpoints and YAML can hold; everything else unchanged."""
    return value.item() if isinstance(value, np.generic) else value


def complete_signature(cls: type) -> inspect.Signature:
    """The signature of ``cls.__init__`` with ``**options`` replaced by the keyword arguments of the base classes."""
    parameters: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        signature = inspect.signature(vars(base)["__init__"])
        own = list(signature.parameters.values())
        wanted = own if base is cls else [p for p in own if p.kind is p.KEYWORD_ONLY]
        parameters |= {p.name: p for p in wanted if p.kind is not p.VAR_KEYWORD and p.name not in parameters}
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            break
    return inspect.Signature(sorted(parameters.values(), key=lambda p: p.kind))


def passed_names(function: Callable[..., Any], instance: Any, args: tuple, kwargs: dict[str, Any]) -> set[str]:
    """Names of the arguments that a caller passed, whether by position or by name."""
    try:
        return set(inspect.signature(function).bind_partial(instance, *args, **kwargs).arguments) | set(kwargs)
    except TypeError:  # the call itself reports it
        return set(kwargs)


def reject_unknown(unknown: dict[str, Any], *functions: Callable[..., Any]) -> None:
    """Raises a TypeError for the first name in ``unknown``, with its new name or the nearest parameter of ``functions``."""
    if not unknown:
        return
    known = [
        name
        for function in functions
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind not in VARIADIC and name != "self"
    ]
    name = next(iter(unknown))
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"the known ones are {', '.join(dict.fromkeys(known))}."
    former = new_name(name, functions)
    if former is not None:
        hint = f"Super Selfish had it; pass {former}."
    raise TypeError(f"{functions[0].__qualname__}() has no argument {name!r} (given: {name}={unknown[name]!r}); {hint}")
