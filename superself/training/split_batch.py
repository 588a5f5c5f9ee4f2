"""Batches that do not fit into memory: the loss of one part after the other, or the networks on a few images at a time.

``loss_in_parts`` needs the memory of one part and equals the loss of the whole batch where that is a mean over images.
``MicroBatches`` also serves losses that compare the images of a batch with each other: the networks run on a few images at a
time, without keeping what the backward pass needs, and run again during the backward pass (as GradCache does).
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

# ---- parts of a batch, one after the other ---------------------------------------------------------------------------


class _Loss(torch.autograd.Function):
    """A value with the gradient of the last part, to which those of the earlier parts are added."""

    @staticmethod
    def forward(ctx: Any, last: Tensor, value: Tensor, weight: float, scale: Tensor | None, *rest: Tensor) -> Tensor:
        ctx.count, ctx.weight, ctx.scale = len(rest) // 2, weight, scale
        ctx.save_for_backward(*rest[: ctx.count])  # the gradients of the earlier parts; the parameters follow
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        gradient = gradient if ctx.scale is None else gradient * ctx.scale
        earlier = torch._foreach_mul(list(ctx.saved_tensors), gradient) if ctx.count else []
        return gradient * ctx.weight, None, None, None, *([None] * ctx.count), *earlier


def scaled_loss(loss: Tensor, scale: Tensor) -> Tensor:
    """``loss`` with its value, and a gradient that is multiplied by ``scale``."""
    return _Loss.apply(loss, loss.detach(), 1.0, scale)


def loss_in_parts(
    supervisor: nn.Module,
    data: Any,
    parts: int,
    part_loss: Callable[[Any], Tensor],
    last_loss: Callable[[Any], Tensor],
    scale: Tensor | None = None,
) -> Tensor:
    """The mean of the losses of the parts of a batch, whose ``backward()`` gives the gradient of the whole batch.

    The gradients of all parts but the last are computed at once and kept as one tensor per parameter, so only one part has
    activations at any time. Nothing is written to ``.grad`` before ``backward()``. Queues and banks remember the embeddings of
    all parts, in their order.

    Args:
        supervisor: whose parameters are trained.
        data: a Batch.
        parts: how many.
        part_loss: the loss of a part, without the wrapper that synchronises several processes during the backward pass.
        last_loss: the same with it, for the last part.
        scale: () multiplies gradients on their way through the networks; each parameter divides its own by it.
    """
    parameters = [parameter for parameter in supervisor.parameters() if parameter.requires_grad]
    memories = [module for module in supervisor.modules() if hasattr(module, "remember_parts")]
    remembered: list[list[Any]] = [[] for _ in memories]
    values: list[Tensor] = []
    sums: dict[nn.Parameter, Tensor] = {}
    batches = data.split(parts)
    for number, part in enumerate(batches, start=1):
        loss, share = (part_loss if number < len(batches) else last_loss)(part), len(part) / len(data)
        if not is_scalar(loss):
            return loss  # the run refuses it
        values.append(share * loss.detach())
        for of_memory, memory in zip(remembered, memories, strict=True):
            of_memory.append(memory.pending)
        if number < len(batches):
            outer = torch.ones_like(loss) if scale is None else scale.to(loss.dtype)
            found = torch.autograd.grad(loss, parameters, share * outer, allow_unused=True)
            for parameter, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    sums[parameter] = gradient if parameter not in sums else sums[parameter] + gradient
    for of_memory, memory in zip(remembered, memories, strict=True):
        memory.remember_parts(of_memory)
    return _Loss.apply(loss, torch.stack(values).sum(), share, scale, *sums.values(), *sums)


def is_scalar(loss: Any) -> bool:
    """Whether it can be a loss."""
    return isinstance(loss, Tensor) and not loss.ndim


# ---- networks that see a few images at a time ------------------------------------------------------------------------


class MicroBatches:
    """Runs networks on a few images at a time, with the memory of these few; losses still see the whole batch.

    Inside ``over(count)``, a call of a network with a whole batch becomes one call per chunk along the first dimension, each
    of which is repeated during the backward pass (``torch.utils.checkpoint``) with the random numbers, parameters and buffers
    that it had, so that running statistics move once. Networks inside other networks, and those that are called by anything
    but ``network(...)``, run as usual.

    Source: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, arXiv:2101.06983.
    Deviations: the gradient of the loss by the embeddings is not computed first; autograd reaches each chunk with it.
    Args:
        networks: called with tensors whose first dimension is the batch, or a multiple of it (tiles, patches, rotations).
        images: m, how many images go through a network at once.
    """

    def __init__(self, networks: Iterable[nn.Module], images: int) -> None:
        self.networks = list(dict.fromkeys(_called(networks)))
        self.images = images
        self._parts = 1

    @contextlib.contextmanager
    def over(self, count: int) -> Iterator[None]:
        """Splits what networks are called with while a loss of ``count`` images is computed."""
        self._parts = math.ceil(count / self.images)
        if self._parts == 1:
            yield
            return
        # What nn.Module.__call__ prefers to forward(); also of compiled networks, which are then called for each chunk.
        originals = [network._compiled_call_impl for network in self.networks]
        self._set([functools.partial(self._call, network) for network in self.networks])
        self._originals = originals
        try:
            yield
        finally:
            self._set(originals)

    def _set(self, calls: list[Callable[..., Any] | None]) -> None:
        for network, call in zip(self.networks, calls, strict=True):
            network._compiled_call_impl = call

    def _call(self, network: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What the network returns for a whole batch, computed chunk by chunk."""
        intercepted = [other._compiled_call_impl for other in self.networks]
        self._set(self._originals)  # of the networks inside this one too
        try:
            chunks = self._chunks(args, kwargs)
            if len(chunks) == 1:
                return network(*args, **kwargs)
            outputs = [self._run(network, arguments) for arguments in chunks]
            return _joined(network, outputs, [_rows(arguments) for arguments in chunks])
        finally:
            self._set(intercepted)

    def _chunks(self, args: tuple, kwargs: dict[str, Any]) -> list[tuple[tuple, dict[str, Any]]]:
        """The arguments of each call: tensors with as many rows as the first one are split, others are passed on whole."""
        flat, spec = tree_flatten((args, kwargs))
        rows = next((len(value) for value in flat if isinstance(value, Tensor) and value.ndim), 0)
        size = max(self.images, math.ceil(rows / self._parts))
        count = math.ceil(rows / size) if rows else 1
        if count == 1:
            return [(args, kwargs)]
        split = [
            value.tensor_split(count) if isinstance(value, Tensor) and value.ndim and len(value) == rows else None
            for value in flat
        ]
        return [
            tree_unflatten([whole if s is None else s[i] for whole, s in zip(flat, split, strict=True)], spec)
            for i in range(count)
        ]

    @staticmethod
    def _run(network: nn.Module, arguments: tuple[tuple, dict[str, Any]]) -> Any:
        """The output for a chunk, without what its backward pass needs."""
        args, kwargs = arguments
        if not torch.is_grad_enabled():
            return network(*args, **kwargs)
        norms = [(module, type(module)) for module in network.modules() if isinstance(module, _BatchNorm)]
        state = dict(network.named_parameters()) | {name: b.clone() for name, b in network.named_buffers()}
        calls = 0

        def call(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 1:
                return network(*args, **kwargs)
            with _as_they_were(norms):
                return functional_call(network, state, args, kwargs)  # buffers that move are those copies

        return checkpoint(call, *args, use_reentrant=False)


@contextlib.contextmanager
def _as_they_were(norms: list[tuple[nn.Module, type]]) -> Iterator[None]:
    """Inside, batch norms have these classes again, which some have only while a loss is computed."""
    now = [type(norm) for norm, _ in norms]
    for norm, kind in norms:
        norm.__class__ = kind
    try:
        yield
    finally:
        for (norm, _), kind in zip(norms, now, strict=True):
            norm.__class__ = kind


def _called(networks: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The networks, and what is in lists and dictionaries of networks, which are not called themselves."""
    for network in networks:
        if type(network) in (nn.ModuleList, nn.ModuleDict):
            yield from _called(network.children())
        else:
            yield network


def _rows(arguments: Any) -> int:
    return next(len(value) for value in tree_flatten(arguments)[0] if isinstance(value, Tensor) and value.ndim)


def _joined(network: nn.Module, outputs: list[Any], rows: list[int]) -> Any:
    """The outputs of all chunks as one output of the same structure."""
    flat, specs = zip(*map(tree_flatten, outputs), strict=True)
    for values, expected in zip(flat, rows, strict=True):
        for value in values:
            if isinstance(value, Tensor) and (not value.ndim or len(value) != expected):
                raise ValueError(
                    f"micro_batch= splits what {type(network).__name__} is called with, but it returned a tensor of shape "
                    f"{tuple(value.shape)} for {expected} rows; let it return one row for each, or leave micro_batch= out."
                )
    joined = [torch.cat(values) if isinstance(values[0], Tensor) else values[0] for values in zip(*flat, strict=True)]
    return tree_unflatten(joined, specs[0])


def has_batch_norm(network: nn.Module) -> bool:
    """Whether a network normalises by statistics of the batch."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())
