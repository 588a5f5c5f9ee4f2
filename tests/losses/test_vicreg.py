import math
import statistics

import pytest
import torch

from superself.losses import VICReg


def embeddings(count=6, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first = 0.5 * torch.randn(count, width, generator=generator)
    return first, first + 0.3 * torch.randn(count, width, generator=generator)


def slow(first, second, eps=1e-4):
    """s, v and c without weights, number by number."""
    rows = [view.tolist() for view in (first, second)]
    count, width = first.shape
    s = sum((a - b) ** 2 for x, y in zip(*rows, strict=True) for a, b in zip(x, y, strict=True)) / (count * width)
    v = c = 0.0
    for view in rows:
        columns = list(zip(*view, strict=True))
        v += sum(max(0, 1 - math.sqrt(statistics.variance(column) + eps)) for column in columns) / width / 2
        for i, a in enumerate(columns):
            for j, b in enumerate(columns):
                if i != j:
                    c += statistics.covariance(a, b) ** 2 / width
    return s, v, c


def test_each_term_equals_the_slow_version():
    first, second = embeddings()
    weighted = [w * term for w, term in zip((3, 5, 7), slow(first, second), strict=True)]
    loss = VICReg(3, 5, 7)
    assert [term.item() for term in loss.terms(first, second)] == pytest.approx(weighted, rel=1e-4)
    assert loss(first, second).item() == pytest.approx(sum(weighted), rel=1e-4)


def test_a_number_worked_by_hand():
    """Rows (1/2, 1/2) and (-1/2, -1/2), and the same moved by (1, 0): s = 1/2, variances and covariances are 1/2.

    v = 1 - sqrt(1/2) with eps near 0, c = 2 * (2 * 1/4) / 2 = 1/2.
    """
    first = torch.tensor([[0.5, 0.5], [-0.5, -0.5]])
    second = first + torch.tensor([1.0, 0.0])
    terms = [term.item() for term in VICReg(1, 1, 1, eps=1e-12).terms(first, second)]
    assert terms == pytest.approx([0.5, 1 - 0.5**0.5, 0.5])


def test_equals_lightly():
    theirs = pytest.importorskip("lightly.loss").VICRegLoss()
    first, second = embeddings(32, 16)
    assert VICReg()(first, second).item() == pytest.approx(theirs(first, second).item(), rel=1e-5)


def test_embeddings_are_not_normalised():
    first, second = embeddings()
    one, two = (VICReg().terms(scale * first, scale * second) for scale in (1, 2))
    assert two[0].item() == pytest.approx(4 * one[0].item(), rel=1e-4)
    assert two[2].item() == pytest.approx(16 * one[2].item(), rel=1e-4)


def test_a_collapsed_network_has_the_weight_of_the_variance_and_a_finite_gradient():
    first = torch.full((8, 3), 0.7, requires_grad=True)
    loss = VICReg()(first, torch.full((8, 3), 0.7))
    loss.backward()
    assert loss.item() == pytest.approx(25 * (1 - math.sqrt(1e-4))) == pytest.approx(24.75)
    assert torch.isfinite(first.grad).all()


def test_features_with_enough_variance_are_not_pushed_further():
    first, second = (10 * view for view in embeddings(16, 3))
    assert VICReg().terms(first, second)[1].item() == 0


def test_is_computed_in_float32_under_mixed_precision_and_in_half_precision():
    first, second = (view.half() for view in embeddings(32, 16))
    loss = VICReg()(first.float(), second.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(VICReg()(first, second), loss)


def test_gradient_is_that_of_the_definition():
    first, second = embeddings(5, 3)
    first.requires_grad_()
    loss = VICReg(1, 1, 1)
    (gradient,) = torch.autograd.grad(loss(first, second), first)
    for place in ((0, 0), (3, 2)):
        step = torch.zeros_like(first)
        step[place] = 1e-2
        difference = (loss(first + step, second) - loss(first - step, second)) / 2e-2
        assert gradient[place].item() == pytest.approx(difference.item(), abs=1e-3)


def test_bad_values_and_shapes_are_refused():
    for name in ("invariance", "variance", "covariance"):
        with pytest.raises(ValueError, match=f"{name} must be a number of at least 0, got -1 "):
            VICReg(**{name: -1})
    with pytest.raises(ValueError, match="eps must be a number above 0, got 0 "):
        VICReg(eps=0)
    with pytest.raises(ValueError, match=r"shapes \(3, 4\) and \(2, 4\); pass two matrices"):
        VICReg()(torch.zeros(3, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="single image; pass at least 2"):
        VICReg()(torch.zeros(1, 4), torch.zeros(1, 4))
