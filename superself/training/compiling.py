"""Compiled networks that fall back to ordinary ones where they cannot be compiled."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn


def compile_networks(networks: list[nn.Module]) -> None:
    """Compiles networks at their first call; if that fails, for example without a compiler, all of them run uncompiled.

    State and names of the networks do not change.
    """
    for network in networks:
        network.compile()
        if network._compiled_call_impl is not None:
            network._compiled_call_impl = functools.partial(_call, network, network._compiled_call_impl, networks)


def _call(
    network: nn.Module, compiled: Callable[..., Any], networks: list[nn.Module], *args: Any, **kwargs: Any
) -> Any:
    from torch._dynamo.exc import TorchDynamoException

    try:
        return compiled(*args, **kwargs)
    except TorchDynamoException as error:
        for other in networks:
            other._compiled_call_impl = None
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2]) or type(error).__name__
        warnings.warn(
            f"compile=True: {type(network).__name__} could not be compiled ({reason}), so the run goes on uncompiled; install "
            "a C++ compiler, or pass compile=False.",
            stacklevel=2,
        )
        return network(*args, **kwargs)
