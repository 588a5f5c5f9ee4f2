"""CombinedNet, pool_features and feature_width."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from superself.networks import CombinedNet, feature_width, pool_features


class Returns(nn.Module):
    """Gives whatever a function makes of the images."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


def small_backbone():
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.5))


def test_prediction_is_the_predictor_on_the_pooled_backbone():
    torch.manual_seed(0)
    net = CombinedNet(nn.Conv2d(3, 5, 3), nn.Linear(5, 2))
    images = torch.randn(4, 3, 8, 8)
    features = net.backbone(images).mean(dim=(2, 3))
    torch.testing.assert_close(net.features(images), features)
    torch.testing.assert_close(net(images), net.predictor(features))


def test_parts_are_the_very_modules_given():
    backbone, predictor = nn.Flatten(), nn.Identity()
    net = CombinedNet(backbone, predictor)
    assert net.backbone is backbone and net.predictor is predictor


def test_a_class_in_place_of_a_module_is_refused():
    with pytest.raises(TypeError, match="predictor=<class .*> is not a module; pass an instance of nn.Module"):
        CombinedNet(nn.Flatten(), nn.Identity)


def test_features_pass_and_maps_and_tokens_are_averaged():
    output = torch.randn(2, 3)
    assert pool_features(output) is output
    maps = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])  # (1, 1, 2, 2)
    assert pool_features(maps).tolist() == [[3.0]]
    tokens = torch.tensor([[[1.0, 10.0], [3.0, 20.0]]])  # (1, 2 tokens, 2)
    assert pool_features(tokens).tolist() == [[2.0, 15.0]]


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ((torch.zeros(2, 3),), r"returned a tuple, but one floating-point tensor \(B, D\).*wrap the backbone"),
        ({"features": torch.zeros(2, 3)}, "returned a dict, but one floating-point tensor"),
        (None, "returned a NoneType"),
        (torch.zeros(2), r"tensor of shape \(2,\) and type torch.float32, but one floating-point tensor"),
        (torch.zeros(2, 3, 1, 1, 1), r"tensor of shape \(2, 3, 1, 1, 1\)"),
        (torch.zeros(2, 3, dtype=torch.int64), "type torch.int64, but one floating-point tensor"),
    ],
)
def test_unusable_outputs_are_refused(output, said):
    with pytest.raises(ValueError, match=said):
        pool_features(output)
    with pytest.raises(ValueError, match=said):
        feature_width(Returns(lambda images: output), (3, 8, 8))


def test_width_is_found_for_maps_tokens_features_and_modules_without_parameters():
    assert feature_width(small_backbone(), (3, 8, 8)) == 5
    assert feature_width(nn.Flatten(), (2, 4, 6)) == 48
    assert feature_width(nn.Flatten(2), (2, 4, 6)) == 24  # two tokens
    assert feature_width(nn.LazyConv2d(7, 3), (4, 8, 8)) == 7


def test_width_is_found_in_the_type_of_the_parameters_and_nan_is_fine():
    assert feature_width(nn.Conv2d(3, 5, 3).double(), (3, 8, 8)) == 5
    assert feature_width(Returns(lambda images: images.flatten(1) / 0), (1, 2, 2)) == 4


def test_finding_the_width_leaves_modes_state_gradients_and_random_state_as_they_were():
    backbone = small_backbone().train()
    backbone[1].eval()
    backbone.append(Returns(lambda maps: maps + torch.rand(1)))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    modes = [module.training for module in backbone.modules()]
    random_state = torch.get_rng_state()
    feature_width(backbone, (3, 8, 8))
    assert [module.training for module in backbone.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_a_backbone_that_cannot_take_the_images_is_named_with_the_cause_and_keeps_its_mode():
    backbone = small_backbone().train()
    with pytest.raises(ValueError, match=r"Sequential failed on .* shape \(2, 4, 8, 8\).*takes 4 channels") as caught:
        feature_width(backbone, (4, 8, 8))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert all(module.training for module in backbone.modules())
    with pytest.raises(ValueError, match="images of 2 x 2, or another image_size"):
        feature_width(backbone, (3, 2, 2))


def test_an_output_without_one_row_for_each_image_is_refused():
    with pytest.raises(ValueError, match=r"returned shape \(1, 96\) for 2 images, but the first dimension must be"):
        feature_width(Returns(lambda images: images.reshape(1, -1)), (3, 4, 4))
