"""In which precision the networks compute: bfloat16 where the hardware has it, float32 elsewhere."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

PRECISIONS = ("auto", "32-true", "bf16-mixed")


def choose_precision(precision: str, device: torch.device, network: nn.Module) -> str:
    """ "32-true" or "bf16-mixed": what is asked for, or with "auto" what is faster on the device.

    Processors with AVX512-BF16 or AMX multiply in bfloat16 natively, but not the depthwise convolutions of networks such as
    MobileNet and EfficientNet: there bfloat16 was three times slower than float32, so they keep float32.

    Raises:
        ValueError: if ``precision`` is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is unknown; pass one of {', '.join(PRECISIONS)} to supervise().")
    if precision != "auto":
        return precision
    if device.type == "cpu":
        native = _processor_computes_bfloat16() and not any(_is_depthwise(module) for module in network.modules())
    else:
        native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16-mixed" if native else "32-true"


def autocast(precision: str, device: torch.device) -> Callable[[], contextlib.AbstractContextManager]:
    """What to enter for a forward pass in ``precision`` on ``device``; from Lightning Fabric."""
    if precision == "32-true":
        return contextlib.nullcontext
    from lightning_fabric import Fabric  # takes a second to import

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # the precision is said in the run's own lines
    return Fabric(accelerator=device.type, devices=1, precision=precision).autocast


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels


def _processor_computes_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux: nothing is known, so nothing is changed
        return False
    return " avx512_bf16" in flags or " amx_bf16" in flags
