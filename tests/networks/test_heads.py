"""The MLP head."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from superself.networks import MLP, BatchRenorm1d, MultiHead, StandardizedLinear


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


def test_norm_is_between_linear_layer_and_relu():
    assert [type(module) for module in MLP(2, 2, norm="batch")] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert [type(module) for module in MLP(2, 2, norm="layer")] == [nn.Linear, nn.LayerNorm, nn.ReLU, nn.Linear]


@pytest.mark.parametrize("norm", [None, "batch", "layer"])
def test_defaults_equal_the_layers_written_out_with_the_same_seed(norm):
    torch.manual_seed(3)
    head = MLP(6, 4, hidden=5, layers=3, norm=norm)
    torch.manual_seed(3)
    layers = []
    for before, after in ((6, 5), (5, 5)):
        layers.append(nn.Linear(before, after, bias=norm != "batch"))
        layers += [] if norm is None else [nn.BatchNorm1d(5) if norm == "batch" else nn.LayerNorm(5)]
        layers.append(nn.ReLU())
    expected = nn.Sequential(*layers, nn.Linear(5, 4))
    assert head.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in head.state_dict().items())
    assert [type(module) for module in head] == [type(module) for module in expected]
    x = torch.randn(7, 6)
    assert torch.equal(head(x), expected(x))


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("group", nn.GroupNorm), ("batch_renorm", BatchRenorm1d), ("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm)],
)
def test_norms_by_name_in_the_middle_and_at_the_end(norm, kind):
    head = MLP(6, 48, hidden=32, norm=norm, last_norm=norm, last_affine=False, activation="gelu")
    assert [type(module) for module in head] == [nn.Linear, kind, nn.GELU, nn.Linear, kind]
    assert head[1].weight is not None and head[4].weight is None and head[4].bias is None
    batch = norm.startswith("batch")
    assert (head[0].bias is None, head[3].bias is None) == (batch, batch)
    output = head(torch.randn(8, 6))
    output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_group_norm_has_sixteen_groups_or_as_many_as_divide_the_width():
    assert [MLP(4, 2, hidden=width, norm="group")[1].num_groups for width in (64, 24, 5)] == [16, 8, 1]


def test_the_last_bias_can_be_left_out():
    assert MLP(6, 4, last_bias=False)[-1].bias is None and MLP(6, 4, last_bias=False)[0].bias is not None
    assert MLP(6, 4, last_norm="layer")[-2].bias is not None


def test_weights_are_standardised_where_a_norm_follows():
    head = MLP(6, 4, norm="group", layers=3, weight_standardization=True)
    assert [type(module) for module in head if isinstance(module, nn.Linear)] == [
        StandardizedLinear,
        StandardizedLinear,
        nn.Linear,
    ]
    for arguments in ({}, {"norm": "batch", "layers": 1}):
        with pytest.raises(
            ValueError, match="weight_standardization=True .* needs a norm after a linear layer; pass norm="
        ):
            MLP(6, 4, weight_standardization=True, **arguments)


def test_several_heads_give_their_outputs_stacked():
    heads = [MLP(6, 4, hidden=5) for _ in range(3)]
    several, x = MultiHead(heads), torch.randn(7, 6)
    assert several(x).shape == (3, 7, 4)
    for k, head in enumerate(heads):
        assert torch.equal(several(x)[k], head(x)) and several[k] is head
    assert len(list(several.parameters())) == 3 * 4
    with pytest.raises(ValueError, match="heads is empty; pass at least one module"):
        MultiHead([])


def test_wrong_arguments_are_refused():
    with pytest.raises(
        ValueError, match="norm='instance' is unknown; pass None, 'batch', 'layer', 'group' or 'batch_renorm'"
    ):
        MLP(2, 2, norm="instance")
    with pytest.raises(ValueError, match="last_norm='instance' is unknown"):
        MLP(2, 2, last_norm="instance")
    with pytest.raises(ValueError, match="activation='tanh' is unknown; pass 'relu' or 'gelu'"):
        MLP(2, 2, activation="tanh")
    with pytest.raises(
        ValueError, match=r"layers must be an integer of at least 1, got 0 \(it is the number of linear layers\)"
    ):
        MLP(2, 2, layers=0)
