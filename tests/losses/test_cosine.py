import math

import pytest
import torch

from superself.losses import NegativeCosine, SymmetricNegativeCosine


def test_equals_the_slow_version():
    p, z = torch.randn(5, 7), torch.randn(5, 7)
    slow = 0.0
    for a, b in zip(p.tolist(), z.tolist(), strict=True):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        slow -= dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b)) / 5
    assert NegativeCosine()(p, z).item() == pytest.approx(slow, abs=1e-6)


def test_a_number_worked_by_hand():
    assert NegativeCosine()(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]])).item() == pytest.approx(-0.6)


def test_no_gradient_flows_into_the_target():
    p, z = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    NegativeCosine()(p, z).backward()
    assert p.grad is not None and z.grad is None


def test_a_zero_vector_gives_zero_and_half_precision_is_computed_in_float32():
    assert NegativeCosine()(torch.zeros(1, 3), torch.ones(1, 3)).item() == 0
    assert NegativeCosine()(torch.ones(1, 3).bfloat16(), torch.ones(1, 3).bfloat16()).dtype == torch.float32


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"prediction \(2, 3\) and target \(2, 4\) differ in shape"):
        NegativeCosine()(torch.ones(2, 3), torch.ones(2, 4))


def test_symmetric_cosine_is_half_of_each_direction():
    """cos((3, 4), (1, 0)) = 0.6 and cos((0, 2), (3, 4)) = 0.8, so -(0.6 + 0.8) / 2."""
    first = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.0]])  # embedding, prediction
    second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert SymmetricNegativeCosine()(first, second).item() == pytest.approx(-0.7)


def test_symmetric_cosine_sends_a_gradient_through_predictions_only():
    z1, p1, z2, p2 = (torch.randn(3, 4, requires_grad=True) for _ in range(4))
    SymmetricNegativeCosine()((z1, p1), (z2, p2)).backward()
    assert z1.grad is None and z2.grad is None
    assert torch.equal(p1.grad, torch.autograd.grad(NegativeCosine()(p1, z2) / 2, p1)[0])
    assert torch.equal(p2.grad, torch.autograd.grad(NegativeCosine()(p2, z1) / 2, p2)[0])


def test_both_agree_with_lightly():
    theirs = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()
    z1, p1, z2, p2 = (torch.randn(5, 7) for _ in range(4))
    assert NegativeCosine()(p1, z2).item() == pytest.approx(theirs(p1, z2).item(), abs=1e-6)
    both = (theirs(p1, z2) + theirs(p2, z1)) / 2
    assert SymmetricNegativeCosine()((z1, p1), (z2, p2)).item() == pytest.approx(both.item(), abs=1e-6)
