"""The global batch of several processes: identities in a single process, so that losses and queues need no second path."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

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
    Raises:
        ValueError: in every process, if they have different numbers of rows. On accelerators this is not checked here,
            because it would wait for them.
    """
    if world_size() == 1:
        return z
    if z.device.type == "cpu":
        require_equal_rows(len(z), z.device)
    return _Gather.apply(z)


def own_rows(z: Tensor) -> Tensor:
    """Which of the gathered rows are the rows of this process.

    Shape:
        z (B, ...) -> (B, world_size * B) bool: true where row j of ``gather(z)`` is row i of ``z``.
    """
    rows = rank() * len(z) + torch.arange(len(z), device=z.device)
    return rows[:, None] == torch.arange(world_size() * len(z), device=z.device)


def require_equal_rows(rows: int, device: torch.device) -> None:
    """Raises a ValueError in every process unless all of them have the same number of rows; waits for an accelerator.

    Args:
        rows: of this process.
        device: on which processes exchange tensors.
    """
    if world_size() == 1:
        return
    counts = torch.zeros(world_size(), dtype=torch.long, device=device)
    counts[rank()] = rows
    distributed.all_reduce(counts)
    if (counts != counts[0]).any():
        raise ValueError(
            f"the processes have batches of {counts.tolist()} rows (rank 0 first), and a loss over all of them needs equal "
            "ones; give every process as many images, for example with drop_last=True in a DataLoader."
        )


def total(x: Tensor) -> Tensor:
    """The sum over processes, element by element; gradients flow back as through ``gather``.

    Shape:
        any -> the same, equal in every process.
    """
    if world_size() == 1:
        return x
    return _Total.apply(x)


def mean(x: Tensor) -> Tensor:
    """The mean over processes, element by element; gradients flow back as through ``gather``.

    A loss that is divided by something counted in the batch, such as the number of hidden pixels, divides by the mean of
    the counts: the mean of the processes' losses, which the gradient is of, is then the loss of the whole batch.

    Shape:
        any -> the same, equal in every process.
    """
    return x if world_size() == 1 else total(x) / world_size()


def from_rank_0(x: Tensor) -> Tensor:
    """The values of rank 0 in every process, for example of a random draw that all must share; without a gradient.

    Shape:
        any, the same in every process -> the same.
    """
    if world_size() == 1:
        return x
    x = x.detach().clone(memory_format=torch.contiguous_format)
    distributed.broadcast(x, src=0)
    return x


def gather_objects(value: Any) -> list[Any]:
    """The picklable values of all processes, in the order of their ranks. Waits for all of them."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


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


class _Gather(torch.autograd.Function):
    """``gather``; torch's own version with a gradient is deprecated."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.rows = len(z)
        parts = [torch.empty_like(z, memory_format=torch.contiguous_format) for _ in range(world_size())]
        distributed.all_gather(parts, z.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _sum(gradient)[rank() * ctx.rows : (rank() + 1) * ctx.rows]


class _Total(torch.autograd.Function):
    """``total``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _sum(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _sum(gradient)


def _sum(x: Tensor) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(x)
    return x
