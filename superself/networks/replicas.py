"""Several accelerators in one process: each gets a copy of a network and a part of the batch, as in torch.nn.DataParallel.

``nn.DataParallel`` around a network would change the names of its parameters and what ``get_backbone()`` returns, and around
a whole algorithm it would leave the state of queues and banks on copies. Networks that call ``apply_on_replicas`` keep both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import gather, parallel_apply, replicate, scatter


def apply_on_replicas(network: nn.Module, method: str, *inputs: Tensor) -> Any:
    """What ``network.method(*inputs)`` returns, computed on all of ``network.replica_devices`` at once.

    Gradients arrive at the parameters of ``network``. Of what a forward pass changes, such as the statistics of batch norm,
    that of the first part of the batch is kept.

    Args:
        network: on the first device; has the attribute ``replica_devices``.
        method: its name, which is called with a part of the batch.
        *inputs: each (B, ...) on the first device.
    """
    parts = scatter(inputs, network.replica_devices)  # a tuple for each device
    devices = network.replica_devices[: len(parts)]
    replicas = replicate(network, devices, not torch.is_grad_enabled())
    precision = _current_autocast(inputs[0].device.type)  # threads start without it
    for replica in replicas:
        replica.replica_devices = ()  # each computes its own part
    calls = [_Call(replica, method, precision) for replica in replicas]
    return gather(parallel_apply(calls, parts, devices=devices), devices[0])


class _Call:
    """A method of a replica, in the precision of the thread that made it."""

    def __init__(self, replica: nn.Module, method: str, precision: dict[str, Any]) -> None:
        self.function, self.precision = getattr(replica, method), precision

    def __call__(self, *inputs: Tensor) -> Any:
        with torch.autocast(**self.precision):
            return self.function(*inputs)


def _current_autocast(kind: str) -> dict[str, Any]:
    return {
        "device_type": kind,
        "dtype": torch.get_autocast_dtype(kind),
        "enabled": torch.is_autocast_enabled(kind),
    }
