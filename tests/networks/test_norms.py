"""Layer norm, batch renormalisation and standardised weights against slow versions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from superself.networks import BatchRenorm1d, LayerNorm2d, StandardizedLinear, build_backbone, use_layer_norm
from superself.networks.modes import batch_statistics


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


def test_batch_renorm_equals_a_loop_over_features():
    """Over several steps, so that limits, running statistics and clipping in both directions all count."""
    generator = torch.Generator().manual_seed(0)
    norm = BatchRenorm1d(4, eps=1e-3, momentum=0.2, r_max=1.5, d_max=0.5, warmup=4)
    nn.init.normal_(norm.weight, generator=generator)
    nn.init.normal_(norm.bias, generator=generator)
    means, variances, clipped = [0.0] * 4, [1.0] * 4, set()
    for step in range(8):
        x = torch.randn(6, 4, generator=generator) * torch.tensor([0.2, 1.0, 1.1, 5.0]) + torch.tensor([2, 0, -0.1, -3])
        expected = torch.empty_like(x)
        share = min(1, step / 4)
        r_max, d_max = 1 + 0.5 * share, 0.5 * share
        for k in range(4):
            column = x[:, k].tolist()
            mean = sum(column) / 6
            variance = sum((value - mean) ** 2 for value in column) / 6
            std, running = math.sqrt(variance + 1e-3), math.sqrt(variances[k] + 1e-3)
            r, d = std / running, (mean - means[k]) / running
            clipped |= {r > r_max, d > d_max}
            r, d = min(max(r, 1 / r_max), r_max), min(max(d, -d_max), d_max)
            for i, value in enumerate(column):
                expected[i, k] = ((value - mean) / std * r + d) * norm.weight[k] + norm.bias[k]
            means[k] += 0.2 * (mean - means[k])
            variances[k] += 0.2 * (variance - variances[k])
        torch.testing.assert_close(norm(x), expected)
    assert clipped == {True, False}
    torch.testing.assert_close(norm.running_mean, torch.tensor(means))
    torch.testing.assert_close(norm.running_var, torch.tensor(variances))


def test_batch_renorm_by_hand():
    """Batch 1, 3 has mean 2 and deviation 1; running mean 1, deviation 2; r = 1/2, d = 1/2: -1 -> 0, 1 -> 1."""
    norm = BatchRenorm1d(1, eps=0.0, warmup=1)
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    norm.num_batches_tracked.fill_(1)
    torch.testing.assert_close(norm(torch.tensor([[1.0], [3.0]])).flatten(), torch.tensor([0.0, 1.0]))


def test_batch_renorm_starts_as_batch_norm_and_evaluates_like_it():
    norm, batch, x = BatchRenorm1d(3), nn.BatchNorm1d(3), torch.randn(6, 3) * 3 + 1
    torch.testing.assert_close(norm(x), batch(x))
    batch.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm.eval()(x), batch.eval()(x))
    mean = norm.running_mean.clone()
    with batch_statistics(norm):
        torch.testing.assert_close(norm(x).mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    assert torch.equal(norm.running_mean, mean)


def test_no_gradient_flows_through_the_correction():
    norm, x = BatchRenorm1d(3, warmup=1), torch.randn(6, 3, requires_grad=True)
    norm.num_batches_tracked.fill_(1)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    mean, std = x.mean(0), (x.var(0, correction=0) + norm.eps).sqrt()
    running = (norm.running_var + norm.eps).sqrt()
    r, d = (std / running).detach(), ((mean - norm.running_mean) / running).detach()
    target = torch.randn(6, 3)
    (expected,) = torch.autograd.grad((((x - mean) / std * r + d) * target).sum(), x)
    (found,) = torch.autograd.grad((norm(x) * target).sum(), x)
    torch.testing.assert_close(found, expected)


def test_batch_renorm_is_computed_in_float32_under_mixed_precision():
    norm, same, x = BatchRenorm1d(3), BatchRenorm1d(3), torch.randn(6, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(norm(x), same(x)) and norm(x.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"warmup must be an integer of at least 1, got 0 \(it is the number of steps"):
        BatchRenorm1d(3, warmup=0)


def test_standardised_weights_equal_a_loop_over_outputs():
    layer, x = StandardizedLinear(5, 3), torch.randn(4, 5)
    expected = torch.empty(4, 3)
    for o in range(3):
        row = layer.weight[o].tolist()
        mean = sum(row) / 5
        std = math.sqrt(sum((w - mean) ** 2 for w in row) / 5)
        for i in range(4):
            expected[i, o] = (
                sum((w - mean) / (std + 1e-5) * v for w, v in zip(row, x[i].tolist(), strict=True)) + layer.bias[o]
            )
    torch.testing.assert_close(layer(x), expected)


def test_standardised_weights_by_hand():
    layer = StandardizedLinear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[3.0, 7.0]])  # mean 5, deviation 2: -1, 1
    torch.testing.assert_close(layer(torch.tensor([[10.0, 4.0]])), torch.tensor([[-6.0]]), rtol=1e-4, atol=0)
