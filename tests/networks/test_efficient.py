"""The default backbone."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from superself.networks import EfficientFeatures


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 33, 47), (4, 64, 64), (2, 225, 225), (3, 225, 96)])
def test_any_image_size_and_any_number_of_channels_give_3136_features(shape):
    backbone = EfficientFeatures(in_channels=shape[0]).eval()
    with torch.no_grad():
        images = torch.randn(1, *shape)
        assert backbone(images).shape == (1, 3136)
        assert backbone.feature_maps(images).shape == (1, 64, 7, 7)


def test_features_are_the_flattened_map():
    backbone = EfficientFeatures().eval()
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), backbone.feature_maps(images).reshape(2, -1))


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_every_parameter_gets_a_gradient(norm):
    backbone = EfficientFeatures(norm=norm, drop_connect=0.0)
    backbone(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


def test_with_layer_norm_a_feature_does_not_depend_on_the_other_images_in_train_mode():
    # Without drop connect, because that draws for each image by its place in the batch.
    torch.manual_seed(0)
    backbone = EfficientFeatures(norm="layer", drop_connect=0.0).train()
    image, others = torch.randn(1, 3, 32, 32), torch.randn(3, 3, 32, 32) * 5 + 1
    with torch.no_grad():
        torch.testing.assert_close(backbone(torch.cat([image, others]))[:1], backbone(image), rtol=1e-3, atol=1e-4)


def test_drop_connect_is_drawn_for_each_image():
    torch.manual_seed(0)
    backbone = EfficientFeatures(norm="layer", drop_connect=0.9).train()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 32, 32).expand(4, -1, -1, -1))
    assert len(features.unique(dim=0)) == 4


def test_with_layer_norm_no_batch_norm_is_left_and_with_batch_norm_it_is_there():
    def batch_norms(norm):
        return sum(isinstance(module, nn.BatchNorm2d) for module in EfficientFeatures(norm=norm).modules())

    assert (batch_norms("layer"), batch_norms("batch")) == (0, 49)


def test_running_averages_follow_within_a_short_run():
    norm = EfficientFeatures().efficientnet._bn0
    assert norm.momentum == pytest.approx(0.1)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_give_the_same_features(clone):
    backbone = EfficientFeatures().eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(clone(backbone)(images), backbone(images))


def test_channels_last_gives_the_same_features_and_trains():
    backbone = EfficientFeatures(drop_connect=0.0)
    images = torch.randn(2, 3, 32, 32)
    expected = backbone.eval()(images)
    backbone.to(memory_format=torch.channels_last)
    features = backbone(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)
    features.sum().backward()


def test_two_runs_before_one_backward_work():
    backbone = EfficientFeatures()
    (backbone(torch.randn(2, 3, 32, 32)) - backbone(torch.randn(2, 3, 32, 32))).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="norm='group' is unknown; pass 'batch' or 'layer'"):
        EfficientFeatures(norm="group")
    with pytest.raises(ValueError, match="efficientnet-b0"):
        EfficientFeatures(name="efficientnet-z9")
