"""What happens to gradients between ``backward()`` and ``step()``, whoever writes ``_update``: scaling and clipping."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer


class LossScale:
    """Keeps float16 gradients from vanishing: they are multiplied on their way through the networks.

    Each parameter divides its gradient by the scale before it is added to ``.grad``, which therefore holds true gradients
    whenever ``_update`` sees them, for example to clip them or to add those of several batches. A step whose gradients are not
    finite is left out and halves the scale; 2,000 finite ones double it.

    Source: Micikevicius et al., Mixed Precision Training, arXiv:1710.03740, Sec. 3.2; ``torch.amp.GradScaler``.
    Deviations: gradients are divided one by one, in float32, where GradScaler divides all of them before the step.
    Args:
        device: of the run.
        parameters: those that are trained.
    """

    def __init__(self, device: torch.device, parameters: list[nn.Parameter]) -> None:
        self.scaler = torch.amp.GradScaler(device.type)
        self._device, self._inverse = device, torch.ones((), device=device)
        self._hooks = [parameter.register_hook(self._divide) for parameter in parameters]
        self.dropped = 0  # steps in a row that were left out

    def next(self) -> Tensor:
        """The scale () of the coming backward pass."""
        scale = self.scaler.scale(torch.ones((), device=self._device))
        self._inverse = scale.reciprocal()
        return scale

    def _divide(self, gradient: Tensor) -> Tensor:
        return gradient * self._inverse.to(gradient.dtype)

    def check(self, optimizer: Optimizer, args: tuple = (), kwargs: dict[str, Any] | None = None) -> None:
        """Before a step: drops gradients that are not finite and adapts the scale; waits for the device, as GradScaler does."""
        require_gradients_before_step("precision='16-mixed'", args, kwargs)
        parameters = with_gradient(optimizer)
        if not parameters:
            return
        found = self.scaler._check_inf_per_device(optimizer)
        overflows = any(value.item() for value in found.values())
        self.dropped = self.dropped + 1 if overflows else 0
        if overflows:
            for parameter in parameters:
                parameter.grad = None
        self.scaler.update()

    def close(self) -> None:
        """Stops dividing gradients."""
        for hook in self._hooks:
            hook.remove()


def clipping(largest: float, note: Callable[[str, Tensor], None]) -> Callable[..., None]:
    """A hook that clips the norm of all gradients of an optimizer together, and notes it as "gradient_norm".

    Args:
        largest: norm that gradients are scaled down to if theirs is larger.
        note: called with the name and the norm before clipping, which stays on the device.
    """

    def clip(optimizer: Optimizer, args: tuple = (), kwargs: dict[str, Any] | None = None) -> None:
        require_gradients_before_step("clip=", args, kwargs)
        parameters = with_gradient(optimizer)
        if parameters:
            note("gradient_norm", clip_grad_norm_(parameters, largest))

    return clip


def freezing(frozen: Callable[[], Iterable[nn.Parameter]]) -> Callable[..., None]:
    """A hook before the steps of an optimizer that removes the gradients of parameters which must not move yet.

    Without a gradient, an optimizer leaves a parameter out: momentum and weight decay do not move it either. The gradient is
    computed nevertheless, so that several processes exchange the same gradients in every step.

    Args:
        frozen: called before each step; returns the parameters that keep their values in it.
    """

    def remove(optimizer: Optimizer, args: tuple = (), kwargs: dict[str, Any] | None = None) -> None:
        for parameter in frozen():
            require_gradients_before_step("freezing parameters", args, kwargs)
            parameter.grad = None

    return remove


def require_gradients_before_step(option: str, args: tuple, kwargs: dict[str, Any] | None) -> None:
    """Raises a TypeError if ``step`` got a closure, which computes gradients after the hooks before the step."""
    given = (*args, *(kwargs or {}).values())  # the optimizer itself is the first
    if any(value is not None and not isinstance(value, Optimizer) for value in given):
        raise TypeError(
            f"{option} looks at the gradients before optimizer.step(), and step(closure) computes them within; call "
            f"step() without a closure, after the backward pass, in _update(), or leave {option} out."
        )


def with_gradient(optimizer: Optimizer) -> list[nn.Parameter]:
    """The parameters of all groups that have a gradient; none if the step is left out."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
