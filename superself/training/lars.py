"""LARS: momentum SGD with a learning rate for each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """Stochastic gradient descent for large batches: each layer moves by a similar fraction of its own norm.

    With weights w and gradient g of one layer, weight decay b, momentum m and trust coefficient e:

        ratio = e ||w|| / (||g|| + b ||w||)        (1 if ||w|| or ||g|| is 0)
        v = m v + ratio (g + b w)
        w = w - lr v

    Biases and norm layers (fewer than two dimensions) get ``ratio = 1`` and no weight decay, as in SimCLR and BYOL.

    Source: You et al., Large Batch Training of Convolutional Networks, arXiv:1708.03888, Algorithm 1.
    Deviations: the learning rate multiplies v when w is updated, as in torch.optim.SGD, and not when v is updated; the two
        are equal while lr is constant.
    Args:
        params: parameters or groups, as for torch.optim.SGD.
        lr: learning rate; SimCLR and BYOL scale theirs by batch size / 256 (0.3 and 0.2 times that).
        momentum: of the update; 0 keeps no state.
        weight_decay: L2 penalty; 1e-6 in SimCLR, 1.5e-6 in BYOL.
        trust_coefficient: e above.
        nesterov: use the look-ahead update of torch.optim.SGD.
        clip: limit ratios to 1, so that no layer moves faster than plain SGD moves it.
        adapt: for a group: True adapts and decays all its parameters; False adapts none of them and decays all, as SGD does;
            None does both for parameters with two or more dimensions only.
    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        nesterov: bool = False,
        clip: bool = False,
        adapt: bool | None = None,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name}={value} must not be negative.")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} must be in [0, 1), for example 0.9.")
        if trust_coefficient <= 0:
            raise ValueError(f"trust_coefficient={trust_coefficient} must be positive, for example 1e-3.")
        if nesterov and momentum == 0:
            raise ValueError("nesterov=True needs momentum, got momentum=0; pass for example momentum=0.9.")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "nesterov": nesterov,
            "clip": clip,
            "adapt": adapt,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient; never waits for the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            is_layer = [p.ndim >= 2 if group["adapt"] is None else group["adapt"] for p in params]
            adapted = [p for p, layer in zip(params, is_layer, strict=True) if layer]
            plain = [p for p, layer in zip(params, is_layer, strict=True) if not layer]
            if adapted:
                updates = self._decayed_gradients(adapted, group["weight_decay"])
                torch._foreach_mul_(updates, self._trust_ratios(adapted, group))
                self._move(adapted, updates, group)
            if plain:
                decay = group["weight_decay"] if group["adapt"] is False else 0.0
                self._move(plain, self._decayed_gradients(plain, decay), group)
        return loss

    @staticmethod
    def _decayed_gradients(params: list[Tensor], weight_decay: float) -> list[Tensor]:
        """g + b w as new tensors, because gradients are left as they are."""
        return list(torch._foreach_add([p.grad for p in params], params, alpha=weight_decay))

    @staticmethod
    def _trust_ratios(params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """One scalar tensor for each parameter; they stay on the device."""
        weights = torch.stack(torch._foreach_norm(params))  # (number of parameters,)
        gradients = torch.stack(torch._foreach_norm([p.grad for p in params]))
        ratios = group["trust_coefficient"] * weights / (gradients + group["weight_decay"] * weights)
        ratios = torch.where((weights > 0) & (gradients > 0), ratios, 1.0)  # also replaces 0 / 0
        return list((ratios.clamp(max=1.0) if group["clip"] else ratios).unbind())

    def _move(self, params: list[Tensor], updates: list[Tensor], group: dict[str, Any]) -> None:
        """Adds the updates to the momentum buffers and moves the parameters."""
        momentum = group["momentum"]
        if momentum:
            for p in params:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in params]
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, updates)
            if group["nesterov"]:
                torch._foreach_add_(updates, buffers, alpha=momentum)
            else:
                updates = buffers
        torch._foreach_add_(params, updates, alpha=-group["lr"])
