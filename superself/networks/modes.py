"""Train and evaluation mode, switched for a while and restored."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextlib.contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Puts the network into evaluation mode, and afterwards each of its modules back into the mode it was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Within evaluation mode: batch norms go by the batch they are given, and their running averages stay as they are.

    Early in a run the running averages are still far from the data, and features that are alive look constant by them.
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
    """Where the first parameter or buffer of the network is."""
    tensors = itertools.chain(network.parameters(), network.buffers(), [torch.empty(0)])
    return next(tensors).device
