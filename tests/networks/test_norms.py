"""Layer norm is computed for each image by itself."""

from __future__ import annotations

import torch
from torch import nn

from superself.networks import LayerNorm2d, build_backbone, use_layer_norm


def test_layer_norm_equals_a_loop_over_images():
    torch.manual_seed(0)
    norm = LayerNorm2d(3, eps=1e-3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    maps = torch.randn(4, 3, 5, 2) * 7 + 2
    expected = torch.empty_like(maps)
    for i, image in enumerate(maps):
        mean, variance = image.mean(), ((image - image.mean()) ** 2).mean()
        for c in range(3):
            expected[i, c] = (image[c] - mean) / torch.sqrt(variance + 1e-3) * norm.weight[c] + norm.bias[c]
    torch.testing.assert_close(norm(maps), expected)


def test_layer_norm_by_hand():
    maps = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1)  # mean 2, variance 1
    torch.testing.assert_close(LayerNorm2d(2, eps=0.0)(maps).flatten(), torch.tensor([-1.0, 1.0]))


def test_use_layer_norm_replaces_every_batch_norm_and_keeps_width_and_eps():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps=0.01), nn.Sequential(nn.BatchNorm2d(8)))
    assert use_layer_norm(network) is network
    assert [type(network[1]), type(network[2][0])] == [LayerNorm2d, LayerNorm2d]
    assert (network[1].num_channels, network[1].eps) == (8, 0.01)


def test_activations_inside_of_batch_norms_stay():
    network = use_layer_norm(build_backbone("timm:mobilenetv3_small_050", (3, 32, 32)))
    reference = build_backbone("timm:mobilenetv3_small_050", (3, 32, 32))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    for kind in (nn.ReLU, nn.Hardswish):
        counts = [sum(isinstance(m, kind) for m in n.modules()) for n in (network, reference)]
        assert counts[0] == counts[1] > 0, kind
