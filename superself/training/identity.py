"""identify: a description in plain values of anything that determines a run, so that a resumed run can be compared with it.

Numbers, texts and collections describe themselves. Everything else is described by what it is made of: a module by its class,
parts, shapes and attributes, a function by its name, its code and the values it holds, a ``functools.partial`` by function and
arguments, any other object by its class and attributes. Weights are left out, because a resumed run takes them from its file.

What this does not see: the code of classes and of functions that are called by name, all code in C and in the packages of
``LIBRARIES`` (so that a new release of torch stops no run), and a function's code if another version of Python runs it.
"""

from __future__ import annotations

import functools
import hashlib
import math
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PYTHON = sys.implementation.cache_tag  # bytecode of one version of Python cannot be compared with that of another
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "skimage", "superself")
OF_EVERY_MODULE = {*vars(nn.Module()), "preprocessing"}  # get_backbone() attaches the latter
SHORT_TENSOR, LONG_SEQUENCE, LONG_TENSOR = 100, 1000, 10**6
MOST_OBJECTS = 10_000  # those beyond are identified by their classes
SHARED = ("attributes", "holds")  # entries that are compared where both sides have them
Plain = Any  # None, bool, int, float, str, and tuples and dicts of these


def identify(value: Any) -> Plain:
    """What identifies ``value``, in numbers, texts, tuples and dicts that a checkpoint can hold.

    Lists and tuples are alike, and so are NumPy's numbers and Python's.
    """
    return _identify(value, {})


def _identify(value: Any, seen: dict[int, Any]) -> Plain:
    """``seen``: the objects described so far by their ids; the next time their class is enough."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (str, bytes, Path, torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, (Tensor, np.ndarray)):
        return _array(value)
    if isinstance(value, type):
        return {"class": qualified_name(value)}
    inner = functools.partial(_identify, seen=seen)
    if isinstance(value, Mapping):
        return {str(key): inner(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, range, set, frozenset)):
        return _sequence(value, inner)
    if id(value) in seen or len(seen) > MOST_OBJECTS:
        return {"class": qualified_name(type(value))}
    seen[id(value)] = value
    if isinstance(value, functools.partial):
        return {"calls": inner(value.func), "with": inner(value.args), "arguments": inner(value.keywords)}
    if isinstance(value, types.MethodType):
        return {"calls": value.__name__, "with": (inner(value.__self__),), "arguments": {}}
    if isinstance(value, types.FunctionType):
        return _function(value, inner)
    if isinstance(value, nn.Module):
        return _module(value, inner)
    if hasattr(value, "__qualname__"):  # a function written in C
        return {"function": qualified_name(value)}
    return {"class": qualified_name(type(value)), "attributes": inner(getattr(value, "__dict__", {}))}


def qualified_name(value: Any) -> str:
    """Module and name of a class or function; the name alone if it is local or belongs to the script that runs."""
    module, name = getattr(value, "__module__", None), value.__qualname__
    if "<locals>." in name:
        return name.rpartition("<locals>.")[2]
    return name if module in (None, "__main__", "__mp_main__", "builtins") else f"{module}.{name}"


def _array(value: Tensor | np.ndarray) -> Plain:
    found = {"shape": tuple(value.shape), "dtype": str(value.dtype)}
    if isinstance(value, Tensor):
        if value.is_meta or value.layout is not torch.strided:
            return found
        value = value.detach().cpu().resolve_conj().resolve_neg()
        value = (value.float() if value.dtype is torch.bfloat16 else value).numpy()
    if value.dtype.hasobject:
        return found
    if value.size <= SHORT_TENSOR:
        return {**found, "entries": identify(value.ravel().tolist())}
    some = np.ascontiguousarray(value.ravel()[:: max(1, value.size // LONG_TENSOR)])
    return {**found, "hash": hashlib.sha256(some.tobytes()).hexdigest()[:16]}


def _sequence(value: Any, inner: Callable[[Any], Plain]) -> Plain:
    items = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
    step = max(1, len(items) // LONG_SEQUENCE)
    found = tuple(inner(item) for item in items[::step])
    return found if step == 1 else {"length": len(items), "items": found}


def _function(function: types.FunctionType, inner: Callable[[Any], Plain]) -> Plain:
    name = qualified_name(function)
    if name.partition(".")[0] in LIBRARIES:
        return {"function": name}
    code = function.__code__
    # Constants of the module that the code names; other functions and modules are identified by their names in the code.
    known = {name: function.__globals__.get(name) for name in sorted(_names(code))}
    held = {name: value for name, value in known.items() if isinstance(value, (bool, int, float, str, tuple))}
    for free, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            held[free] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return {
        "function": name,
        "defaults": inner((function.__defaults__, function.__kwdefaults__)),
        "holds": inner(held),
        "code": hashlib.sha256(repr(_code(code, function.__doc__)).encode()).hexdigest()[:16],
        "python": PYTHON,
    }


def _names(code: types.CodeType) -> set[str]:
    inside = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*inside)


def _code(code: types.CodeType, doc: str | None = None) -> tuple[Any, ...]:
    """Instructions, constants and names, without the docstring and without the lines where they are written."""

    def constant(value: Any) -> Any:
        if isinstance(value, types.CodeType):
            return _code(value)
        return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)

    constants = [None if value is doc else constant(value) for value in code.co_consts]
    return code.co_code, constants, code.co_names, code.co_argcount, code.co_kwonlyargcount


def _module(module: nn.Module, inner: Callable[[Any], Plain]) -> Plain:
    unsaved = {name: buffer for name, buffer in module._buffers.items() if name in module._non_persistent_buffers_set}
    saved = {name: v for name, v in {**module._parameters, **module._buffers}.items() if name not in unsaved}
    own = {name: value for name, value in vars(module).items() if name not in OF_EVERY_MODULE}
    found = {
        "shapes": {name: _shape(value) for name, value in saved.items() if value is not None},
        "frozen": tuple(name for name, p in module._parameters.items() if p is not None and not p.requires_grad),
        "attributes": inner({**own, **unsaved}),
        "parts": {name: inner(child) for name, child in module._modules.items() if child is not None},
    }
    # sync_batchnorm=True replaces all of batch norm's classes by one, in some ways of running only.
    norm = isinstance(module, nn.modules.batchnorm._BatchNorm) and type(module).__module__.startswith("torch.")
    name = "torch.nn.modules.batchnorm.BatchNorm" if norm else qualified_name(type(module))
    return {"class": name, **{key: value for key, value in found.items() if value}}


def _shape(value: Tensor) -> Plain:
    return "not known yet" if nn.parameter.is_lazy(value) else tuple(value.shape)


def unchanged(before: Plain, after: Plain) -> Plain:
    """``before`` without attributes and held values that have changed since, such as a counter: these are state.

    Args:
        before: an identity at the start of a run.
        after: that of the same object later.
    """
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return before
    kept = {key: unchanged(value, after.get(key)) for key, value in before.items() if key not in SHARED}
    for key in SHARED:
        if isinstance(before.get(key), dict) and isinstance(after.get(key), dict):
            pairs = {name: (value, after[key][name]) for name, value in before[key].items() if name in after[key]}
            kept[key] = {name: unchanged(*pair) for name, pair in pairs.items() if _is_same_thing(*pair)}
    return kept


def _is_same_thing(before: Plain, after: Plain) -> bool:
    described = isinstance(before, dict) and isinstance(after, dict) and "class" in before
    return before["class"] == after.get("class") if described else before == after


def differences(was: Plain, now: Plain, name: str) -> list[str]:
    """In words, where two identities differ: "name: was ..., is now ..."; an empty list if they agree."""
    if was == now and isinstance(was, bool) == isinstance(now, bool):
        return []
    if isinstance(was, tuple) and isinstance(now, tuple) and len(was) == len(now) and isinstance(was[0], dict):
        pairs = enumerate(zip(was, now, strict=True))
        return [text for place, pair in pairs for text in differences(*pair, f"{name}[{place}]")]
    both = isinstance(was, dict) and isinstance(now, dict)
    if not both or any(was.get(kind) != now.get(kind) for kind in ("class", "function", "calls", "dtype")):
        return [f"{name}: was {in_words(was)}, is now {in_words(now)}"]
    if "dtype" in was and was["shape"] == now["shape"]:
        return [f"{name}: was {in_words(was)}, is now {in_words(now)}" if "entries" in was else f"{name}: other values"]
    same_python = was.get("python") == now.get("python")
    found = []
    for key in [key for key in was if key in now or key not in SHARED] + [key for key in now if key not in was]:
        if key in SHARED or key == "parts" and key in was and key in now:
            shared = [inner for inner in was[key] if inner in now.get(key, {})] if key in was else []
            found += [
                text for inner in shared for text in differences(was[key][inner], now[key][inner], f"{name}.{inner}")
            ]
            if key == "parts" and was[key].keys() != now[key].keys():
                found.append(f"{name}: was made of {', '.join(was[key])}, is now of {', '.join(now[key])}")
        elif key == "code" and was[key] != now.get(key):
            found += [f"{name}: the code of {in_words(was)} has changed"] * same_python
        elif key != "python":
            missing = "not set"
            found += differences(was.get(key, missing), now.get(key, missing), f"{name}.{key}")
    return found


def in_words(value: Plain) -> str:
    """An identity as part of a sentence: an object by its class, a function by its name, a value by itself."""
    if isinstance(value, dict):
        if "function" in value:
            return f"the function {value['function']}"
        if "calls" in value:
            named = [f"{name}={in_words(item)}" for name, item in value["arguments"].items()]
            return f"{in_words(value['calls'])}({', '.join([*map(in_words, value['with']), *named])})"
        if "class" in value:
            return value["class"]
        if "entries" in value:
            return f"tensor({list(value['entries'])})"
    described = isinstance(value, tuple) and any(isinstance(item, (dict, tuple)) for item in value)
    text = f"({', '.join(map(in_words, value))})" if described else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
