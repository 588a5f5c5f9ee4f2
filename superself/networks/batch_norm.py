"""Batch norm over all processes, or over parts of a batch: switched in place, so that a network stays the user's module.

A batch norm is switched by its class. Its parameters, buffers, hooks and place in the network remain, so optimizers and
checkpoints see no difference, and switching back leaves the ordinary module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from superself.basics.distributed import total, world_size
from superself.networks.norms import BatchRenorm1d


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """All batch norms inside a network."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


# ---- parts of a batch ------------------------------------------------------------------------------------------------


class _Split:
    """A batch norm that sees parts of a batch one after the other."""

    split_into: ClassVar[int]

    def forward(self, x: Tensor) -> Tensor:
        normalize = super().forward
        parts = max(
            1, min(self.split_into, len(x) // 2)
        )  # fewer where the network gets only some of the images at once
        return torch.cat([normalize(part) for part in x.tensor_split(parts)])


@contextlib.contextmanager
def split_batch_norm(network: nn.Module, parts: int) -> Iterator[None]:
    """Inside, the batch norms of a network in train mode normalise consecutive parts of a batch separately.

    Outputs, gradients and running statistics are those of one call of the network for each part: running statistics
    move once for every part.

    Args:
        network: changed in place, and as before on exit.
        parts: their number; each needs at least two rows.
    """
    norms = [(norm, type(norm)) for norm in batch_norms(network) if norm.training and parts > 1]
    for norm, kind in norms:
        norm.__class__ = _split(kind, parts)
    try:
        yield
    finally:
        for norm, kind in norms:
            norm.__class__ = kind


@cache
def _split(kind: type[_BatchNorm], parts: int) -> type[_BatchNorm]:
    return type(f"Split{kind.__name__}", (_Split, kind), {"split_into": parts})


# ---- all processes ---------------------------------------------------------------------------------------------------


class _Synchronized:
    """A batch norm whose statistics in train mode are those of the batches of all processes."""

    ordinary: ClassVar[type[_BatchNorm]]
    process_group = None  # nn.SyncBatchNorm asks for these two; None is all processes

    @staticmethod
    def _check_non_zero_input_channels(x: Tensor) -> None:
        """Ordinary batch norms with no channels are accepted too."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.track_running_stats) or world_size() == 1:
            return super().forward(x)
        y = _normalize(self, x) if x.device.type == "cpu" else nn.SyncBatchNorm.forward(self, x)
        for name in ("drop", "act"):  # inside timm's batch norms
            y = getattr(self, name)(y) if hasattr(self, name) else y
        return y


class _SynchronizedRenorm:
    """Batch renormalisation with the statistics of the batches of all processes."""

    ordinary: ClassVar[type[_BatchNorm]]

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super()._moments(x) if world_size() == 1 else _global_moments(x)[:2]


def synchronize_batch_norm(network: nn.Module) -> nn.Module:
    """Makes every batch norm inside a network see the batches of all processes in train mode, in place; returns the network.

    In evaluation mode, in a single process, and inside ``batch_statistics``, nothing differs from ordinary batch norm.
    ``restore_batch_norm`` makes them ordinary again.

    Source: as ``nn.SyncBatchNorm``, which is used on accelerators but does not exist on the CPU.
    Raises:
        TypeError: if a batch norm computes in a ``forward`` of its own, which cannot be synchronised.
    """
    norms = [norm for norm in batch_norms(network) if not is_synchronized(norm)]
    kinds = [_synchronized(type(norm)) for norm in norms]  # raises before anything is switched
    for norm, kind in zip(norms, kinds, strict=True):
        norm.__class__ = kind
    return network


@contextlib.contextmanager
def synchronized_batch_norm(network: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Inside, ``synchronize_batch_norm`` applies to the network if it is wanted."""
    if wanted:
        synchronize_batch_norm(network)
    try:
        yield
    finally:
        if wanted:
            restore_batch_norm(network)


def restore_batch_norm(network: nn.Module) -> nn.Module:
    """Undoes ``synchronize_batch_norm``, in place, and returns the network."""
    for norm in batch_norms(network):
        norm.__class__ = getattr(type(norm), "ordinary", type(norm))
    return network


def is_synchronized(network: nn.Module) -> bool:
    """Whether ``synchronize_batch_norm`` has been applied to a network that has batch norms."""
    return any(isinstance(norm, (_Synchronized, _SynchronizedRenorm, nn.SyncBatchNorm)) for norm in network.modules())


@cache
def _synchronized(kind: type[_BatchNorm]) -> type[_BatchNorm]:
    mixin = _SynchronizedRenorm if issubclass(kind, BatchRenorm1d) else _Synchronized
    if mixin is _Synchronized and kind.forward is not _BatchNorm.forward and not kind.__module__.startswith("timm."):
        raise TypeError(
            f"sync_batchnorm=True cannot synchronise {kind.__name__}, which computes batch norm in a forward of its own; pass "
            "sync_batchnorm=False, or a network with nn.BatchNorm1d, 2d or 3d."
        )
    return type(f"Synchronized{kind.__name__}", (mixin, kind), {"ordinary": kind})


def _normalize(norm: _BatchNorm, x: Tensor) -> Tensor:
    """What ``nn.SyncBatchNorm`` computes, in operations that run on the CPU."""
    with torch.autocast(x.device.type, enabled=False):
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        variance, average, count = _global_moments(values)
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            weight = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(average.to(norm.running_mean.dtype), weight)
            norm.running_var.lerp_((variance * count / (count - 1)).to(norm.running_var.dtype), weight)
        scale = (variance + norm.eps).rsqrt()
        shift = -average * scale
        if norm.affine:
            scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
        return (values * _per_channel(scale, x) + _per_channel(shift, x)).to(x.dtype)


def _global_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The biased variance and the mean of each channel (C,) over the batches of all processes, and how many values () that is."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    sums = total(torch.cat([x.sum(axes), x.new_full((1,), x.numel() / x.shape[1])]))
    average, count = sums[:-1] / sums[-1], sums[-1].detach()
    return total((x - _per_channel(average, x)).square().sum(axes)) / count, average, count


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.ndim - 2))
