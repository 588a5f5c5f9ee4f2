"""Train and evaluation mode, switched temporarily and restored."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextlib.contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Puts a network into evaluation mode; on exit each of its modules returns to the mode it was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Inside evaluation mode: batch norms use the statistics of the batch, and their running averages do not change.

    Early in a run the running averages are far from the data, which makes features look constant although they are not.
    """
    norms = [n for n in network.modules() if isinstance(n, _BatchNorm) and n.track_running_stats and not n.training]
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm in norms:
            norm.training, norm.track_running_stats = False, True


def device_of(network: nn.Module) -> torch.device:
    """The device of the first parameter or buffer of a network; the CPU if it has none."""
    tensors = itertools.chain(network.parameters(), network.buffers(), [torch.empty(0)])
    return next(tensors).device
