import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from superself.networks import Prototypes


def test_scores_are_the_cosines_with_each_prototype():
    prototypes, z = Prototypes(8, 5), torch.randn(3, 8)
    scores = prototypes(z)
    for row in range(3):
        for k in range(5):
            expected = cosine_similarity(z[row], prototypes.weight[k], dim=0)
            assert scores[row, k].item() == pytest.approx(expected.item(), abs=1e-6)


def test_it_is_a_linear_layer_with_weight_normalisation_and_gains_of_one():
    prototypes, layer = Prototypes(8, 5), nn.utils.parametrizations.weight_norm(nn.Linear(8, 5, bias=False))
    with torch.no_grad():
        layer.parametrizations.weight.original0.fill_(1)
        layer.parametrizations.weight.original1.copy_(prototypes.weight)
    z = nn.functional.normalize(torch.randn(3, 8), dim=1)
    goal = torch.randn(3, 5)
    assert torch.allclose(prototypes(z), layer(z), atol=1e-6)
    (prototypes(z) * goal).sum().backward()
    (layer(z) * goal).sum().backward()
    assert torch.allclose(prototypes.weight.grad, layer.parametrizations.weight.original1.grad, atol=1e-5)


def test_renormalising_keeps_the_scores():
    prototypes, z = Prototypes(8, 5), torch.randn(3, 8)
    before = prototypes(z)
    prototypes.renormalize()
    assert torch.allclose(prototypes.weight.norm(dim=1), torch.ones(5)) and torch.allclose(prototypes(z), before)


def test_scores_are_computed_in_float32():
    prototypes, z = Prototypes(8, 5), torch.randn(3, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        scores = prototypes(z)
    assert scores.dtype == torch.float32 and torch.allclose(scores, prototypes(z.float()))


def test_no_prototypes_are_refused():
    with pytest.raises(ValueError, match="count must be .*, got 0"):
        Prototypes(8, 0)
