"""CombinedNet and MapNet join a backbone and a predictor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from superself.networks import MLP, CombinedNet, EfficientFeatures, MapNet, compilable_networks


def test_prediction_is_the_predictor_on_the_pooled_backbone():
    torch.manual_seed(0)
    net = CombinedNet(nn.Conv2d(3, 5, 3), nn.Linear(5, 2))
    images = torch.randn(4, 3, 8, 8)
    features = net.backbone(images).mean(dim=(2, 3))
    torch.testing.assert_close(net.features(images), features)
    torch.testing.assert_close(net(images), net.predictor(features))


def test_parts_are_the_modules_that_were_given():
    backbone, predictor = nn.Flatten(), nn.Identity()
    net = CombinedNet(backbone, predictor)
    assert net.backbone is backbone and net.predictor is predictor


def test_a_class_in_place_of_a_module_is_refused():
    with pytest.raises(TypeError, match="predictor=<class .*> is not a module; pass an instance of nn.Module"):
        CombinedNet(nn.Flatten(), nn.Identity)


@pytest.mark.parametrize(
    "predictor", [nn.Linear(6, 2), MLP(6, 2, hidden=3), nn.Sequential(nn.Sequential(nn.Linear(6, 2)))]
)
def test_a_predictor_of_another_width_is_named_with_both_widths_and_the_remedy(predictor):
    net = CombinedNet(nn.Conv2d(3, 5, 3), predictor)
    said = (
        r"Conv2d gives features of width 5, but .* linear layer for 6; pass a predictor that takes 5, .*nn.Linear\(5, "
    )
    with pytest.raises(ValueError, match=said):
        net(torch.zeros(2, 3, 8, 8))


def test_predictors_that_do_not_start_with_a_linear_layer_are_not_checked():
    class Reordered(nn.Sequential):
        def forward(self, x):
            return self[0](self[1](x))

    images = torch.zeros(2, 3, 8, 8)
    assert CombinedNet(nn.Conv2d(3, 5, 3), Reordered(nn.Linear(7, 2), nn.Linear(5, 7)))(images).shape == (2, 2)
    assert CombinedNet(nn.Conv2d(3, 5, 3), nn.Sequential())(images).shape == (2, 5)


def test_map_net_hands_over_the_maps_of_the_backbone():
    images = torch.randn(2, 3, 16, 16)
    net = MapNet(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 1))
    torch.testing.assert_close(net(images), net.predictor(net.backbone(images)))
    assert net.features(images).shape == (2, 5)
    assert MapNet(EfficientFeatures(), nn.Identity()).eval()(images).shape == (2, 64, 7, 7)


def test_networks_to_compile_are_children_with_parameters_and_the_parts_of_combined_ones():
    owner = nn.Module()
    owner.model, owner.head, owner.loss = CombinedNet(nn.Conv2d(3, 5, 3), nn.Identity()), nn.Linear(2, 2), nn.MSELoss()
    assert compilable_networks(owner) == [owner.model, owner.model.backbone, owner.head]
