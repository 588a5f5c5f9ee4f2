import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from superself import BarlowTwinsSupervisor
from superself.losses import Hypersphere, alignment, uniformity

from cases import TinyBackbone, tiny_images


def embeddings(count=6, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(count, width, generator=generator)
    return first, first + torch.randn(count, width, generator=generator)


def slow_uniformity(x, t):
    """Every pair of different rows once."""
    rows = normalize(x, dim=1).tolist()
    pairs = [(a, b) for i, a in enumerate(rows) for b in rows[i + 1 :]]
    squares = [sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) for a, b in pairs]
    return math.log(sum(math.exp(-t * square) for square in squares) / len(pairs))


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_alignment_equals_the_slow_version(alpha):
    first, second = embeddings()
    rows = zip(normalize(first, dim=1).tolist(), normalize(second, dim=1).tolist(), strict=True)
    slow = sum(math.dist(a, b) ** alpha for a, b in rows) / 6
    assert alignment(3 * first, second, alpha).item() == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("t", [0.5, 2.0])
def test_uniformity_is_over_squared_distances_of_different_images(t):
    x, _ = embeddings()
    assert uniformity(5 * x, t).item() == pytest.approx(slow_uniformity(x, t), rel=1e-5)


def test_numbers_worked_by_hand():
    """(3, 0), (0, 2) and (-1, 0) are at squared distances of 2, 2 and 4: log((2 e^-4 + e^-8) / 3) = -4.396349 for t = 2."""
    x = torch.tensor([[3.0, 0], [0, 2], [-1, 0]])
    assert (
        uniformity(x).item()
        == pytest.approx(math.log((2 * math.exp(-4) + math.exp(-8)) / 3))
        == pytest.approx(-4.396349)
    )
    assert alignment(x, x.roll(1, 0)).item() == pytest.approx(8 / 3)
    assert alignment(x, x.roll(1, 0), alpha=1).item() == pytest.approx((2 + 2 * 2**0.5) / 3)


def test_bounds():
    same = torch.ones(5, 3)
    assert uniformity(same).item() == pytest.approx(0, abs=1e-5) and alignment(same, same).item() == 0
    directions = torch.randn(400, 500, generator=torch.Generator().manual_seed(0))
    assert uniformity(directions).item() == pytest.approx(-4, abs=0.05)


def test_uniformity_is_finite_where_every_potential_underflows():
    opposite = torch.tensor([[1.0, 0], [-1, 0]])
    assert uniformity(opposite, t=100).item() == pytest.approx(-400)


@pytest.mark.parametrize(("t", "weight", "alpha"), [(2.0, 1.0, 2.0), (1.0, 0.5, 3.0)])
def test_loss_is_the_weighted_sum_and_equals_lightly(t, weight, alpha):
    first, second = embeddings(32, 8)
    spread = (uniformity(first, t) + uniformity(second, t)) / 2
    found = Hypersphere(t, weight, alpha)(first, second).item()
    assert found == pytest.approx((alignment(first, second, alpha) + weight * spread).item(), rel=1e-5)
    theirs = pytest.importorskip("lightly.loss.hypersphere_loss").HypersphereLoss(t, weight, alpha)
    assert found == pytest.approx(theirs(first, second).item(), rel=1e-4)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_equal_images_and_views_have_finite_gradients(alpha):
    first = torch.ones(4, 3, requires_grad=True)
    Hypersphere(alpha=alpha)(first, torch.ones(4, 3)).backward()
    assert torch.isfinite(first.grad).all()


def test_gradients_pull_views_together_and_push_images_apart():
    first, second = (view.requires_grad_() for view in embeddings())
    (pull,) = torch.autograd.grad(alignment(first, second), first)
    assert alignment(first - 0.1 * pull, second) < alignment(first, second)
    (push,) = torch.autograd.grad(uniformity(first), first)
    assert uniformity(first - 0.1 * push) < uniformity(first)


def test_is_computed_in_float32_under_mixed_precision_and_in_half_precision():
    first, second = (view.half() for view in embeddings(32, 16))
    loss = Hypersphere()(first.float(), second.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Hypersphere()(first, second), loss)


def test_it_trains_an_algorithm_whose_loss_takes_two_embeddings():
    heads = {"projector": {"out_features": 8, "layers": 2, "hidden": 16}, "loss": Hypersphere()}
    supervisor = BarlowTwinsSupervisor(tiny_images(), backbone=TinyBackbone(), seed=0, **heads)
    supervisor.supervise(epochs=1, batch_size=16, name="run", progress=False)
    assert supervisor.step == 1 and isinstance(supervisor.loss, nn.Module)


def test_bad_values_and_shapes_are_refused():
    for name in ("t", "alpha"):
        with pytest.raises(ValueError, match=f"{name} must be a number above 0, got 0 "):
            Hypersphere(**{name: 0})
    with pytest.raises(ValueError, match="weight must be a number of at least 0, got -1 "):
        Hypersphere(weight=-1)
    with pytest.raises(ValueError, match=r"shapes \(3, 4\) and \(3, 5\); pass two matrices"):
        Hypersphere()(torch.zeros(3, 4), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="uniformity compares pairs of images, and got 1; pass two or more"):
        uniformity(torch.ones(1, 3))
