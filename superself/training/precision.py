"""The precision that networks compute in: bfloat16 where the hardware supports it, float32 elsewhere, float16 if asked for."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
ALIASES = {
    "16": "16-mixed",
    "fp16": "16-mixed",
    "float16": "16-mixed",
    "bf16": "bf16-mixed",
    "bfloat16": "bf16-mixed",
    "32": "32-true",
    "fp32": "32-true",
    "float32": "32-true",
}


def check_precision(precision: str | int) -> str:
    """``precision`` as one of PRECISIONS: "bf16" becomes "bf16-mixed", "fp16" and 16 become "16-mixed", and 32 "32-true".

    Raises:
        ValueError: if it is unknown.
    """
    known = ALIASES.get(str(precision), precision)
    if known not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is unknown; pass one of {', '.join(PRECISIONS)} to supervise().")
    return known


def choose_precision(precision: str | int, device: torch.device, network: nn.Module) -> str:
    """The precision of a run; "auto" chooses the faster one of "32-true" and "bf16-mixed".

    Processors with AVX512-BF16 or AMX multiply in bfloat16, but do not speed up the depthwise convolutions of networks such
    as MobileNet and EfficientNet: these ran three times slower than in float32, so "auto" keeps float32 for them.

    Args:
        precision: see ``check_precision``.
        device: of the run.
        network: everything that is trained.
    Raises:
        ValueError: if ``precision`` is unknown.
    """
    precision = check_precision(precision)
    if precision != "auto":
        return precision
    if device.type == "cpu":
        native = _processor_computes_bfloat16() and not any(_is_depthwise(module) for module in network.modules())
    else:
        native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16-mixed" if native else "32-true"


def autocast(precision: str, device: torch.device) -> Callable[[], contextlib.AbstractContextManager]:
    """A function that makes the context manager for forward passes in ``precision`` on ``device`` (Lightning Fabric's)."""
    if precision == "32-true":
        return contextlib.nullcontext
    if precision == "16-mixed":  # Fabric computes in bfloat16 instead on processors
        return functools.partial(torch.autocast, device.type, dtype=torch.float16)
    from lightning_fabric import Fabric  # takes a second to import

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # the run itself prints the precision
    return Fabric(accelerator=device.type, devices=1, precision=precision).autocast


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels


def _processor_computes_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux: unknown, so float32
        return False
    return " avx512_bf16" in flags or " amx_bf16" in flags
