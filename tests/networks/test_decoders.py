import pytest
import torch
from torch import nn

from superself.networks import Decoder, Upsampling

SHAPES = [(3, 32, 32), (1, 16, 16), (4, 20, 16), (3, 225, 180), (3, 97, 33), (2, 5, 5), (3, 7, 30)]


@pytest.mark.parametrize("shape", SHAPES)
def test_decoder_gives_exactly_the_size_of_the_image(shape):
    assert Decoder(10, shape, width=8)(torch.zeros(2, 10)).shape == (2, *shape)


@pytest.mark.parametrize("maps", [(4, 4), (7, 7), (1, 1), (3, 9)])
@pytest.mark.parametrize("shape", SHAPES[:5])
def test_upsampling_takes_maps_of_any_size(maps, shape):
    assert Upsampling(6, shape, width=8)(torch.zeros(2, 6, *maps)).shape == (2, *shape)


@pytest.mark.parametrize("decoder", [Decoder(10, (3, 32, 32)), Upsampling(6, (3, 32, 32))])
def test_output_is_free_of_norm_and_activation(decoder):
    layers = [m for m in decoder.modules() if not list(m.children())]
    assert isinstance(layers[-1], nn.Conv2d) and layers[-1].bias is not None


def test_every_weight_receives_a_gradient():
    decoder = Decoder(10, (3, 32, 32), width=64)
    decoder(torch.randn(4, 10)).square().mean().backward()
    assert all(p.grad is not None for p in decoder.parameters())


def test_stages_double_and_halve():
    stages = Decoder(10, (3, 32, 32), width=128)[-1]
    assert stages.sizes == [(8, 8), (16, 16), (32, 32)]
    assert [stage[0].out_channels for stage in stages.stages] == [128, 64, 32]
