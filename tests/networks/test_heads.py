"""The MLP head."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from superself.networks import MLP


@pytest.mark.parametrize("norm", [None, "batch", "layer"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_head_ends_in_a_plain_linear_layer_and_every_parameter_gets_a_gradient(norm, layers):
    head = MLP(6, 4, hidden=5, layers=layers, norm=norm)
    assert type(head[-1]) is nn.Linear
    assert sum(isinstance(module, nn.Linear) for module in head) == layers
    output = head(torch.randn(3, 6))
    assert output.shape == (3, 4)
    output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_head_equals_the_written_out_formula():
    head = MLP(2, 3, hidden=4)
    x = torch.randn(5, 2)
    hidden = (x @ head[0].weight.T + head[0].bias).clamp(min=0)
    torch.testing.assert_close(head(x), hidden @ head[2].weight.T + head[2].bias)


def test_hidden_layers_are_as_wide_as_the_input_unless_said():
    assert MLP(6, 4)[0].out_features == 6


def test_norm_stands_between_linear_layer_and_relu():
    assert [type(module) for module in MLP(2, 2, norm="batch")] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert [type(module) for module in MLP(2, 2, norm="layer")] == [nn.Linear, nn.LayerNorm, nn.ReLU, nn.Linear]


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="norm='group' is unknown; pass None, 'batch' or 'layer'"):
        MLP(2, 2, norm="group")
    with pytest.raises(ValueError, match="layers=0 leaves no layer; pass layers >= 1"):
        MLP(2, 2, layers=0)
