"""Heads: projectors and predictors that follow a backbone during training."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from superself.basics.validate import require_choice, require_count, shortened
from superself.networks.norms import BatchRenorm1d, StandardizedLinear

GROUPS = 16  # of group norm, or fewer where 16 does not divide the width
_BATCH_NORMS = {"batch": nn.BatchNorm1d, "batch_renorm": BatchRenorm1d}
_NORMS = (None, "batch", "layer", "group", "batch_renorm")
_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


class MLP(nn.Sequential):
    """Linear layer, norm and activation for each hidden layer, then a linear layer, by default with nothing after it.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        hidden: width of the hidden layers; None means ``in_features``.
        layers: number of linear layers; 1 is a single linear layer.
        norm: norm after each hidden linear layer: None, "batch", "layer", "group" (of 16 groups) or "batch_renorm".
        last_norm: norm of the output, from the same choices; "batch" in SimSiam's projector.
        last_affine: whether the norm of the output has a scale and shift.
        last_bias: whether the last linear layer has a bias. Before a batch norm no linear layer has one, because the norm
            would subtract it.
        weight_standardization: standardise the weights of every linear layer that a norm follows.
        activation: "relu" or "gelu".

    Shape:
        (B, in_features) -> (B, out_features).

    Raises:
        ValueError: if a choice is unknown, there are fewer than 1 layers, or no norm follows standardised weights.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: int | None = None,
        layers: int = 2,
        norm: str | None = None,
        last_norm: str | None = None,
        last_affine: bool = True,
        last_bias: bool = True,
        weight_standardization: bool = False,
        activation: str = "relu",
    ) -> None:
        require_choice("norm", norm, _NORMS)
        require_choice("last_norm", last_norm, _NORMS)
        require_choice("activation", activation, _ACTIVATIONS)
        require_count("layers", layers, "is the number of linear layers")
        if weight_standardization and last_norm is None and (norm is None or layers == 1):
            raise ValueError(
                "weight_standardization=True fixes the scale of the weights and needs a norm after a linear layer; pass "
                "norm='group' or another norm."
            )
        widths = [in_features] + [hidden or in_features] * (layers - 1) + [out_features]
        modules: list[nn.Module] = []
        for layer, (before, after) in enumerate(zip(widths, widths[1:], strict=False), start=1):
            last = layer == layers
            kind = last_norm if last else norm
            bias = kind not in _BATCH_NORMS and (last_bias or not last)
            linear = StandardizedLinear if weight_standardization and kind is not None else nn.Linear
            modules.append(linear(before, after, bias=bias))
            if kind is not None:
                modules.append(_norm(kind, after, affine=last_affine or not last))
            if not last:
                modules.append(_ACTIVATIONS[activation]())
        super().__init__(*modules)


def check_head(name: str, head: Any, named: Iterable[str] = ()) -> None:
    """Refuses a projector or predictor whose arguments of ``MLP``, or whose name, are unknown. Modules are checked later.

    Args:
        name: of the argument.
        head: a module, a dictionary of arguments of ``MLP``, a name or None.
        named: the names that the method accepts.
    Raises:
        TypeError: if it is none of these.
        ValueError: if the dictionary has a key that is not an argument of ``MLP``, or a name is unknown.
    """
    if isinstance(head, Mapping):
        known = list(inspect.signature(MLP.__init__).parameters)[2:]
        unknown = [key for key in head if key not in known]
        if unknown:
            raise ValueError(f"{name}={dict(head)!r} has the key {unknown[0]!r}; the arguments are {', '.join(known)}.")
        MLP(8, **{"out_features": 8, **head})  # raises for wrong values
    elif not (head is None or isinstance(head, nn.Module) or head in named):
        names = "".join(f"{choice!r}, " for choice in named)
        error = ValueError if named else TypeError
        raise error(
            f"{name}={shortened(head)} is not a head; pass {names}an instance of nn.Module, a dictionary of arguments of "
            "MLP, or None."
        )


class MultiHead(nn.ModuleList):
    """Several heads for the same features, for example clusterings of different initialisation.

    Args:
        heads: modules from (B, D) to outputs of equal shape.

    Shape:
        (B, D) -> (heads, B, K).

    Raises:
        ValueError: if there are no heads.
    """

    def __init__(self, heads: Iterable[nn.Module]) -> None:
        super().__init__(heads)
        if not len(self):
            raise ValueError("heads is empty; pass at least one module.")

    def forward(self, features: Tensor) -> Tensor:
        """The outputs of all heads."""
        return torch.stack([head(features) for head in self])


def _norm(kind: str, width: int, affine: bool) -> nn.Module:
    if kind == "layer":
        return nn.LayerNorm(width, elementwise_affine=affine)
    if kind == "group":
        return nn.GroupNorm(math.gcd(GROUPS, width), width, affine=affine)
    return _BATCH_NORMS[kind](width, affine=affine)
