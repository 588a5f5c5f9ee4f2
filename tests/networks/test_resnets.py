"""ResNet-9, ResNets of any width, and ResNets with standardised weights; AlexNet with batch norm."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torchvision
from torch import nn

from superself import BYOLSupervisor
from superself.networks import (
    ResNet,
    StandardizedConv2d,
    build_backbone,
    describe,
    feature_maps,
    fresh_copy,
    pooled_features,
)

from tensors import images_of

NAMES = {"resnet9:width=0.25": 128, "ws_resnet18:width=0.125": 64, "alexnet_bn": 256}


def parameters_of(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "lightly_name"), [("resnet9", "resnet-9"), ("resnet18", "resnet-18"), ("resnet50", "resnet-50")]
)
@pytest.mark.parametrize("width", [0.125, 0.3])
def test_parameters_and_maps_are_those_of_lightly(name, lightly_name, width):
    generator = pytest.importorskip("lightly.models").ResNetGenerator
    theirs, ours = generator(lightly_name, width=width), build_backbone(f"{name}:width={width}", (3, 32, 32))
    assert parameters_of(ours) == parameters_of(theirs) - parameters_of(theirs.linear)
    body = [module for module in theirs.modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
    mine = [module for module in ours.modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
    assert [repr(module) for module in mine] == [repr(module) for module in body]
    for source, target in zip(body, mine, strict=True):
        target.load_state_dict(source.state_dict())
    theirs.linear = nn.Identity()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images))


def test_resnet9_has_one_block_in_each_stage_as_counted_by_hand():
    # stem 3*64*9 + 128; stages with two 3x3 convolutions, two norms, and from the second on a 1x1 shortcut with its norm
    stages = [(64, 64), (64, 128), (128, 256), (256, 512)]
    by_hand = 1728 + 128
    for before, after in stages:
        by_hand += 9 * before * after + 9 * after * after + 4 * after
        by_hand += before * after + 2 * after if before != after else 0
    assert parameters_of(build_backbone("resnet9", (3, 32, 32))) == by_hand == 4_903_242 - 5130


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_width_1_computes_what_torchvision_computes(name):
    theirs, ours = build_backbone(name, (3, 80, 80)), build_backbone(f"{name}:width=1", (3, 80, 80))
    assert isinstance(ours, ResNet) and not isinstance(theirs, ResNet)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 80, 80)
    torch.testing.assert_close(ours(images), theirs(images))
    torch.testing.assert_close(feature_maps(ours, images), feature_maps(theirs, images))


@pytest.mark.parametrize(("name", "width"), NAMES.items())
@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 15, 40), (4, 72, 96)], ids=str)
def test_names_take_all_channels_and_sizes_and_reach_every_parameter(name, width, shape):
    backbone = build_backbone(name, shape)
    stem = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    assert stem.in_channels == shape[0] and (stem.kernel_size == (3, 3)) == (min(shape[1:]) <= 64)
    assert describe(backbone).startswith(f"{name} (superself), {shape[0]} channel")
    images = torch.randn(2, *shape)
    features = pooled_features(backbone, images)
    assert features.shape == (2, width) and backbone.spec.width == width
    torch.testing.assert_close(feature_maps(backbone, images).mean((2, 3)), features)
    features.square().sum().backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_and_a_pickle_know_how_they_were_built(name):
    backbone = build_backbone(name, (2, 32, 32))
    for copied in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        fresh = fresh_copy(copied)
        assert describe(copied) == describe(fresh) == describe(backbone)
        pairs = zip(fresh.parameters(), backbone.parameters(), strict=True)
        assert not all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_trains_it_and_is_loaded_without_data(name):
    images = images_of(8, height=24, width=24)
    heads = {"projector": {"hidden": 16, "out_features": 16}, "predictor": {"hidden": 16}}
    trained = BYOLSupervisor(images, backbone=name, seed=0, **heads)
    before = [parameter.detach().clone() for parameter in trained.get_backbone().parameters()]
    trained.supervise(epochs=1, batch_size=4, name="run", progress=False)
    backbone = trained.get_backbone()
    assert all(not torch.equal(*pair) for pair in zip(before, backbone.parameters(), strict=True))
    loaded = BYOLSupervisor().load("run").get_backbone()
    assert describe(loaded) == describe(backbone)
    pixels = torch.randn(3, 3, 24, 24)
    assert torch.equal(loaded.eval()(pixels), backbone.eval()(pixels))


@pytest.mark.parametrize(("name", "independent"), [("ws_resnet18:width=0.125", True), ("resnet18:width=0.125", False)])
def test_standardised_resnets_treat_each_image_alone_in_train_mode(name, independent):
    backbone = build_backbone(name, (3, 32, 32)).train()
    images, others = torch.randn(4, 3, 32, 32), 3 * torch.randn(4, 3, 32, 32)
    alone, among = backbone(images[:1]), backbone(torch.cat([images[:1], others]))[:1]
    assert torch.allclose(alone, among, atol=1e-4) == independent


def test_all_weights_of_ws_resnets_are_standardised_the_new_stem_too():
    for shape in ((3, 32, 32), (1, 96, 96)):
        backbone = build_backbone("ws_resnet50:width=0.125", shape)
        convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
        assert {type(module) for module in convolutions} == {StandardizedConv2d}
        norms = [module for module in backbone.modules() if isinstance(module, nn.GroupNorm)]
        assert len(norms) == len(convolutions) and {norm.num_groups for norm in norms} == {8, 16, 32}
        assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())


def test_standardised_convolution_equals_slow_one_and_a_number_by_hand():
    conv = StandardizedConv2d(2, 3, 3, padding=1)
    x = torch.randn(2, 2, 5, 5)
    weight = torch.stack([(row - row.mean()) / (row.std(correction=0) + 1e-5) for row in conv.weight])
    torch.testing.assert_close(conv(x), nn.functional.conv2d(x, weight, conv.bias, padding=1))
    single = StandardizedConv2d(2, 1, 1, bias=False)
    single.weight.data = torch.tensor([1.0, 5.0]).view(1, 2, 1, 1)  # mean 3, deviation 2: -1 and 1
    assert single(torch.tensor([10.0, 4.0]).view(1, 2, 1, 1)).item() == pytest.approx(-6, abs=1e-3)


def test_alexnet_gives_maps_before_and_after_its_last_relu():
    backbone = build_backbone("alexnet_bn", (3, 224, 224)).eval()
    images = torch.randn(1, 3, 224, 224)
    before, after = backbone.before_relu(images), backbone(images)
    assert before.shape == (1, 256, 13, 13) and after.shape == (1, 256, 6, 6)
    assert before.min() < 0 <= after.min()
    torch.testing.assert_close(after, nn.functional.max_pool2d(before.relu(), 3, 2))
    theirs = [(m.kernel_size, m.stride) for m in torchvision.models.alexnet().features if isinstance(m, nn.Conv2d)]
    ours = [(m.kernel_size, m.stride) for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert ours == theirs


def test_alexnet_says_how_small_images_may_be():
    assert build_backbone("alexnet_bn", (3, 15, 15))(torch.zeros(1, 3, 15, 15)).shape[2:] == (1, 1)
    with pytest.raises(ValueError, match="alexnet_bn needs images of at least 15 x 15 pixels, got 14 x 20"):
        build_backbone("alexnet_bn", (3, 14, 20))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "resnet18:width=wide",
            "has the option 'width=wide', which is not a width; pass for example \"resnet18:width=0.5\"",
        ),
        ("resnet18:width=-1", "not a width"),
        ("resnet18:width=inf", "not a width"),
        ("resnet18:depth=3", "has the option 'depth=3', which is not a width"),
        ("convnext_tiny:width=2", "only ResNets have one"),
        ("resnet9:width=0.01", "width=0.01 leaves no channels of the 64 in the first layer; pass at least 1/64"),
        ("resnet-9", r"No backbone is called 'resnet-9' \(nearest: resnet9"),
        ("resnet18@", 'names no weights; pass for example "resnet18@imagenet"'),
        ("", "is not a name; pass None"),
    ],
)
def test_wrong_names_say_what_is_right(name, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(name, (3, 32, 32))
