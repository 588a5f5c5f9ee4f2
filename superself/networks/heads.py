"""Heads: what stands behind a backbone while it is trained."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

_NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class MLP(nn.Sequential):
    """Linear, norm, ReLU for every hidden layer, then a plain linear layer: no norm and no activation at the end.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        hidden: width of the hidden layers; None takes ``in_features``.
        layers: number of linear layers; 1 is a plain linear layer.
        norm: norm behind each hidden linear layer: None, "batch" or "layer".

    Shape:
        (B, in_features) -> (B, out_features).

    Raises:
        ValueError: if ``norm`` is unknown or there are fewer than 1 layers.
    """

    def __init__(
        self, in_features: int, out_features: int, hidden: int | None = None, layers: int = 2, norm: str | None = None
    ) -> None:
        if norm is not None and norm not in _NORMS:
            raise ValueError(f"norm={norm!r} is unknown; pass None, 'batch' or 'layer'.")
        if layers < 1:
            raise ValueError(f"layers={layers} leaves no layer; pass layers >= 1.")
        widths = [in_features] + [hidden or in_features] * (layers - 1)
        modules: list[nn.Module] = []
        for before, after in pairwise(widths):
            modules.append(nn.Linear(before, after, bias=norm != "batch"))  # batch norm takes the mean away again
            if norm is not None:
                modules.append(_NORMS[norm](after))
            modules.append(nn.ReLU())
        super().__init__(*modules, nn.Linear(widths[-1], out_features))
