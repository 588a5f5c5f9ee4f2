"""Backbones by name, with stems that fit the images."""

from __future__ import annotations

import copy
import pickle
import sys

import pytest
import torch
from torch import nn

from superself.networks import EfficientFeatures, LayerNorm2d, build_backbone, describe, feature_width, fresh_copy


def first_conv(network):
    return next(module for module in network.modules() if isinstance(module, nn.Conv2d))


def test_default_is_efficient_features_and_is_described_so():
    backbone = build_backbone()
    assert isinstance(backbone, EfficientFeatures)
    assert describe(backbone) == "efficientnet-b0 (efficientnet-pytorch), 3 channels, 3136 features"


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("resnet18", 512),
        ("efficientnet_b0", 1280),
        ("mobilenet_v3_small", 1024),
        ("convnext_tiny", 768),
        ("swin_t", 768),
        ("regnet_y_400mf", 440),
        ("squeezenet1_1", 512),
        ("googlenet", 1024),
    ],
)
def test_torchvision_names_give_features_that_reach_every_parameter(name, width):
    backbone = build_backbone(name, (4, 32, 48))
    assert describe(backbone) == (
        f"{name} (torchvision), 4 channels, 3 x 3 stem for images of 32 x 48, {width} features"
    )
    features = backbone.train()(torch.randn(2, 4, 32, 48))
    assert features.shape == (2, width)
    features.square().sum().backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_stem_takes_any_number_of_channels(channels):
    stem = first_conv(build_backbone("resnet18", (channels, 96, 96)))
    assert (stem.in_channels, stem.kernel_size, stem.stride, stem.padding) == (channels, (7, 7), (2, 2), (3, 3))


def test_small_images_get_a_stem_that_keeps_their_size():
    backbone = build_backbone("resnet18", (3, 64, 200))
    assert (backbone.conv1.kernel_size, backbone.conv1.stride, backbone.conv1.bias) == ((3, 3), (1, 1), None)
    assert isinstance(backbone.maxpool, nn.Identity)
    assert backbone.relu(backbone.conv1(torch.zeros(1, 3, 64, 64))).shape[2:] == (64, 64)


def test_large_images_keep_the_stem_and_its_pooling():
    backbone = build_backbone("resnet18", (3, 65, 65))
    assert isinstance(backbone.maxpool, nn.MaxPool2d)
    assert describe(backbone) == "resnet18 (torchvision), 3 channels, 512 features"


def test_default_backbone_gets_the_small_stem_too():
    backbone = build_backbone(None, (1, 32, 32))
    assert "1 channel, 3 x 3 stem for images of 32 x 32, 3136" in describe(backbone)
    assert first_conv(backbone).stride == (1, 1)


def test_vision_transformer_is_built_for_the_image_size_and_keeps_its_patches():
    backbone = build_backbone("vit_b_16", (1, 32, 32))
    assert describe(backbone) == "vit_b_16 (torchvision), 1 channel, 768 features"
    assert backbone.conv_proj.kernel_size == (16, 16)


@pytest.mark.parametrize("shape", [(3, 225, 225), (3, 224, 112)])
def test_vision_transformer_refuses_sizes_that_its_patches_do_not_tile(shape):
    with pytest.raises(ValueError, match="square images whose side is a multiple of 16, not .*; pass image_size=224"):
        build_backbone("vit_b_16", shape)


def test_a_network_that_needs_larger_images_says_so():
    with pytest.raises(ValueError, match=r"Inception3 failed on .*\(2, 3, 32, 32\).*another image_size"):
        build_backbone("inception_v3", (3, 32, 32))


def test_a_feature_in_train_mode_has_no_dropout_left():
    backbone = build_backbone("efficientnet_b0", (3, 32, 32))
    assert all(module.p == 0 for module in backbone.modules() if isinstance(module, nn.Dropout))


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_timm_names_give_features_that_reach_every_parameter(name):
    pytest.importorskip("timm")
    backbone = build_backbone(f"timm:{name}", (2, 48, 32))
    assert describe(backbone).startswith(f"{name} (timm), 2 channels")
    assert ("3 x 3 stem" in describe(backbone)) == (not name.startswith("vit"))
    features = backbone(torch.randn(2, 2, 48, 32))
    assert features.shape == (2, feature_width(backbone, (2, 48, 32)))
    features.square().sum().backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


def test_without_timm_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"'timm:resnet18' needs timm.*pip install superself\[timm\]"):
        build_backbone("timm:resnet18")


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"No backbone is called 'resnet-18' \(nearest: resnet18, .*; pass a name of"):
        build_backbone("resnet-18")
    with pytest.raises(ValueError, match="No backbone is called '%'; pass a name of"):
        build_backbone("%")
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="'vit_tiny_patch16' .*vit_tiny_patch16_224.*timm.list_models"):
        build_backbone("timm:vit_tiny_patch16")


def test_what_is_neither_name_nor_module_is_refused():
    with pytest.raises(TypeError, match="backbone=<class .* pass None, a name or an instance of nn.Module"):
        build_backbone(nn.Identity)


def test_a_module_is_returned_unchanged():
    module = nn.Conv2d(3, 4, 3)
    attributes = set(vars(module))
    assert build_backbone(module, (1, 32, 32)) is module
    assert set(vars(module)) == attributes and module.in_channels == 3


@pytest.mark.parametrize("name", [None, "resnet18"])
def test_a_copy_or_a_pickle_knows_how_it_was_built(name):
    backbone = build_backbone(name, (2, 32, 32))
    for copied in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert describe(copied) == describe(backbone)
        fresh = fresh_copy(copied)
        assert describe(fresh) == describe(backbone)
        assert not torch.equal(first_conv(fresh).weight, first_conv(backbone).weight)
        fresh.load_state_dict(backbone.state_dict())


def test_layer_norm_replaces_batch_norm_in_names_and_in_modules_in_place():
    named = build_backbone("resnet18", (3, 32, 32), norm="layer")
    assert describe(named).endswith("512 features, layer norm")
    for network in (named, named.spec.build()):
        kinds = {type(module) for module in network.modules()}
        assert LayerNorm2d in kinds and nn.BatchNorm2d not in kinds
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert build_backbone(module, norm="layer") is module and isinstance(module[1], LayerNorm2d)
    with pytest.raises(ValueError, match="norm='group' is unknown; pass 'batch' or 'layer'"):
        build_backbone(None, (3, 32, 32), norm="group")


def test_same_seed_gives_the_same_weights():
    def weights():
        torch.manual_seed(3)
        return build_backbone("resnet18", (1, 32, 32)).state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_running_averages_are_right_after_short_runs():
    norms = [m for m in build_backbone("mobilenet_v3_small", (3, 64, 64)).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.1}
