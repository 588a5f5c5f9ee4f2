import statistics

import pytest
import torch

from superself.losses import BarlowTwins


def embeddings(count=6, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(count, width, generator=generator)
    return first, first + torch.randn(count, width, generator=generator)


def slow(first, second, weight):
    """Correlation by correlation, with the standard deviation over N."""
    loss = 0.0
    columns = [view.T.tolist() for view in (first, second)]
    for i, a in enumerate(columns[0]):
        for j, b in enumerate(columns[1]):
            centred = [[x - statistics.fmean(c) for x in c] for c in (a, b)]
            covariance = statistics.fmean(x * y for x, y in zip(*centred, strict=True))
            correlation = covariance / statistics.pstdev(a) / statistics.pstdev(b)
            loss += (1 - correlation) ** 2 if i == j else weight * correlation**2
    return loss


def test_equals_the_slow_version():
    first, second = embeddings()
    assert BarlowTwins(0.3, eps=1e-12)(first, second).item() == pytest.approx(slow(first, second, 0.3), rel=1e-5)


def test_a_number_worked_by_hand():
    """Columns (1, -1, 1, -1) and (1, 1, -1, -1); in the other view the second is the first: C = ((1, 1), (0, 0))."""
    a, b = torch.tensor([1.0, -1, 1, -1]), torch.tensor([1.0, 1, -1, -1])
    loss = BarlowTwins(0.5, scale=10, eps=1e-12)(torch.stack([a, b], 1), torch.stack([a, a], 1))
    assert loss.item() == pytest.approx(10 * (1 + 0.5))


def test_equals_lightly():
    theirs = pytest.importorskip("lightly.loss").BarlowTwinsLoss(lambda_param=0.02)
    first, second = embeddings(32, 16)
    assert BarlowTwins(0.02)(first, second).item() == pytest.approx(theirs(first, second).item(), rel=1e-5)


def test_neither_scale_nor_shift_of_a_feature_matters():
    first, second = embeddings()
    moved = first * torch.tensor([1.0, 10, 0.5, 3]) + torch.tensor([0.0, 5, -1, 2])
    loss = BarlowTwins(0.1)
    assert loss(moved, second).item() == pytest.approx(loss(first, second).item(), rel=1e-3)


def test_the_weight_follows_the_width_unless_it_is_given():
    assert BarlowTwins().weight_for(8192, 2048) == pytest.approx(0.0051)
    assert BarlowTwins().weight_for(8192, 4096) == pytest.approx(0.0051)
    assert BarlowTwins().weight_for(512, 64) == pytest.approx(0.00255)
    assert BarlowTwins(0.0051).weight_for(2048, 64) == 0.0051


def test_chance_level_is_the_mean_over_independent_views():
    loss = BarlowTwins(0.2, scale=3)
    generator = torch.Generator().manual_seed(0)
    found = [
        loss(torch.randn(16, 8, generator=generator), torch.randn(16, 8, generator=generator)).item()
        for _ in range(300)
    ]
    assert loss.chance_level(8, 16) == pytest.approx(statistics.fmean(found), rel=0.1)
    assert BarlowTwins(0.0051).chance_level(8192, 256) == pytest.approx(9529, rel=0.005)


def test_a_constant_feature_gives_finite_values_and_gradients_and_counts_as_uncorrelated():
    first, second = embeddings(8, 3)
    first[:, 0], second[:, 1] = 7.0, -2.0
    first.requires_grad_()
    loss = BarlowTwins(0.1)(first, second)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(first.grad).all()
    constant = torch.ones(8, 3)
    assert BarlowTwins(0.1)(constant, constant).item() == pytest.approx(3)


def test_is_computed_in_float32_under_mixed_precision_and_in_half_precision():
    first, second = (view.half() for view in embeddings(32, 16))
    loss = BarlowTwins()(first.float(), second.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(BarlowTwins()(first, second), loss)


def test_gradient_is_that_of_the_definition():
    first, second = (view.double().requires_grad_() for view in embeddings(5, 3))
    loss = BarlowTwins(0.3)
    small = 1e-3
    (gradient,) = torch.autograd.grad(loss(first, second), first)
    for place in ((0, 0), (3, 2)):
        step = torch.zeros_like(first)
        step[place] = small
        difference = (loss(first + step, second) - loss(first - step, second)) / (2 * small)
        assert gradient[place].item() == pytest.approx(difference.item(), abs=5e-3)


def test_the_terms_add_up():
    first, second = embeddings()
    diagonal, rest = BarlowTwins(0.2, scale=2).terms(first, second)
    assert diagonal.item() == pytest.approx(BarlowTwins(0.0, scale=2)(first, second).item())
    assert (diagonal + rest).item() == pytest.approx(BarlowTwins(0.2, scale=2)(first, second).item())


def test_bad_values_and_shapes_are_refused():
    with pytest.raises(ValueError, match="weight must be a number of at least 0, got -1 "):
        BarlowTwins(-1)
    with pytest.raises(ValueError, match="scale must be a number above 0, got 0 "):
        BarlowTwins(scale=0)
    with pytest.raises(ValueError, match=r"shapes \(3, 4\) and \(3, 5\); pass two matrices"):
        BarlowTwins()(torch.zeros(3, 4), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="single image; pass at least 2"):
        BarlowTwins()(torch.zeros(1, 4), torch.zeros(1, 4))
