"""The global batch of several processes: identities in a single process, so that losses and queues need no second path."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, distributed

_is_alone = False


def world_size() -> int:
    """How many processes train together; 1 without ``torch.distributed``."""
    return distributed.get_world_size() if _initialized() else 1


def rank() -> int:
    """The number of this process, from 0 to ``world_size() - 1``; 0 writes and prints."""
    return distributed.get_rank() if _initialized() else 0


def gather(z: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks. Gradients flow back to the process a row came from.

    A row receives the sum of the gradients that the losses of all processes have for it. DistributedDataParallel averages
    over processes afterwards, so a loss computed from gathered rows has the gradient of one process with the whole batch.

    Shape:
        (B, ...) -> (world_size * B, ...); B must be the same in every process.
    """
    if world_size() == 1:
        return z
    from torch.distributed.nn import functional as collective  # not in builds of torch without distributed

    return torch.cat(collective.all_gather(z.contiguous()))


def mean(x: Tensor) -> Tensor:
    """The mean over processes, element by element; gradients flow back as through ``gather``.

    Shape:
        any -> the same, equal in every process.
    """
    if world_size() == 1:
        return x
    from torch.distributed.nn import functional as collective

    return collective.all_reduce(x.clone()) / world_size()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process counts as the only one: for work that the others take no part in."""
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


def _initialized() -> bool:
    return not _is_alone and distributed.is_available() and distributed.is_initialized()
