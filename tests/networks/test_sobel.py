import pytest
import torch
from torch import nn

from superself.augment import Sobel
from superself.basics.colour import luma_derivatives
from superself.networks import (
    SobelBackbone,
    build_backbone,
    build_sobel,
    describe,
    feature_maps,
    feature_width,
    fresh_copy,
)

from cases import TinyBackbone
from tensors import noise


def test_the_backbone_sees_the_derivatives_of_the_luma():
    images, backbone = noise(2, 3, 8, 8), TinyBackbone(2).eval()
    network = SobelBackbone(backbone)
    assert torch.equal(network(images), backbone(luma_derivatives(images)))
    assert torch.equal(luma_derivatives(images.sigmoid()), Sobel()(images.sigmoid()))
    assert torch.equal(feature_maps(network, images), backbone(luma_derivatives(images)))


def test_derivatives_by_hand():
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    x, y = luma_derivatives(ramp)[0]
    assert torch.equal(x[:, 1:-1], torch.full((4, 2), 8.0)) and not y.any()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_named_backbone_is_built_for_two_channels_and_takes_images_of_any_number(channels):
    network = build_sobel("resnet18", (channels, 32, 32))
    assert network.backbone.conv1.in_channels == 2 and feature_width(network, (channels, 32, 32)) == 512
    assert describe(network).startswith("Sobel filter, then resnet18 (torchvision), 2 channels, 3 x 3 stem")
    copy = fresh_copy(network)
    assert isinstance(copy, SobelBackbone)
    assert not torch.equal(copy.backbone.conv1.weight, network.backbone.conv1.weight)


def test_it_has_no_weights_and_is_not_put_on_twice():
    backbone = TinyBackbone(2)
    network = build_sobel(backbone, (3, 8, 8))
    assert len(list(network.parameters())) == len(list(backbone.parameters()))
    assert build_sobel(network, (3, 8, 8)) is network
    assert build_sobel(backbone, (2, 8, 8), sobel=False) is backbone
    assert isinstance(build_sobel("resnet18", (3, 8, 8), sobel=False), type(build_backbone("resnet18")))
    assert isinstance(network, nn.Module)
