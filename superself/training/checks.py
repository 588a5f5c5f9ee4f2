"""Arguments, checked before the first step."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any


def check_known(unknown: dict[str, Any], *functions: Callable[..., Any]) -> None:
    """Raises a TypeError for each name in ``unknown``, with the nearest parameter of ``functions``."""
    if not unknown:
        return
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    known = [
        name
        for function in functions
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind not in kinds and name != "self"
    ]
    name = next(iter(unknown))
    nearest = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(dict.fromkeys(known))}."
    raise TypeError(
        f"{functions[0].__qualname__}() has no argument {name!r} (given: {name}={unknown[name]!r}); {meant}"
    )


def check_settings(settings: dict[str, Any], n: int) -> None:
    """Raises a ValueError for a setting of ``supervise()`` that cannot be trained with on ``n`` images."""
    batch_size = settings["batch_size"]
    if n == 0:
        raise ValueError(
            "There is no data to train on: the supervisor was made without a data set and the folder 'dataset' holds no "
            "images; pass a folder, a list of paths, an array, a tensor or a torch Dataset to the constructor."
        )
    for name in ("batch_size", "epochs", "probe_every"):
        if not isinstance(settings[name], int) or settings[name] < 1:
            raise ValueError(f"{name}={settings[name]!r} must be a whole number of at least 1; pass it to supervise().")
    if batch_size > n:
        raise ValueError(
            f"batch_size={batch_size} is larger than the data set ({n} images), so there is no full batch; "
            f"pass batch_size <= {n} to supervise()."
        )
    if settings["resume"] and settings["pretrained"]:
        raise ValueError(
            "resume=True and pretrained=True are different things: resume=True continues the stored run (optimiser, step and "
            "order included), pretrained=True starts a new run from stored weights; pass one of them to supervise()."
        )
    probe = settings["probe"]
    if probe is not None and not (isinstance(probe, (tuple, list)) and len(probe) == 2):
        raise ValueError(
            f"probe is a {type(probe).__name__}, but a pair (labelled_train, labelled_test) is needed; pass two data sets."
        )
