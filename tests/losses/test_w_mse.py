import numpy as np
import pytest
import torch

from superself.losses import WMSE
from superself.losses.w_mse import whiten


def embeddings(count=24, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(count, width, generator=generator) @ torch.randn(width, width, generator=generator) + 3
    return first, first + torch.randn(count, width, generator=generator)


def slow(first, second, parts):
    """Image by image, with numpy in double precision."""
    distances = []
    for part in parts.tolist():
        whitened = []
        for view in (first, second):
            z = view.double().numpy()[part]
            inverse = np.linalg.inv(np.linalg.cholesky(np.cov(z, rowvar=False)))
            w = [inverse @ (row - z.mean(0)) for row in z]
            whitened.append([row / np.linalg.norm(row) for row in w])
        distances += [((a - b) ** 2).sum() for a, b in zip(*whitened, strict=True)]
    return sum(distances) / len(distances)


def test_equals_the_slow_version():
    first, second = embeddings()
    torch.manual_seed(3)
    parts = torch.cat([torch.randperm(24).view(3, 8), torch.randperm(24).view(3, 8)])
    torch.manual_seed(3)
    found = WMSE(8, iterations=2, eps=0)(first, second)
    assert found.item() == pytest.approx(slow(first, second, parts), rel=1e-4)


def test_equals_lightly():
    theirs = pytest.importorskip("lightly.loss").WMSELoss(embedding_dim=4, w_size=8, w_iter=2)
    first, second = embeddings()
    torch.manual_seed(3)
    expected = theirs(torch.cat([first, second]))
    torch.manual_seed(3)
    assert WMSE(8, iterations=2, eps=0)(first, second).item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_number_worked_by_hand():
    """Of one feature, only the sign is left: (1, 2, 9) and (1, 7, 9) are around means of 4 and 17/3, so one of three differs.

    Unit vectors of different sign are at a squared distance of 4.
    """
    first, second = torch.tensor([[1.0], [2], [9]]), torch.tensor([[1.0], [7], [9]])
    assert WMSE(3)(first, second).item() == pytest.approx(4 / 3, rel=1e-5)


def test_whitened_embeddings_have_covariance_one_in_each_part():
    parts = embeddings()[0].view(3, 8, 4)
    whitened = whiten(parts, eps=0)
    assert torch.allclose(whitened.mean(1), torch.zeros(3, 4), atol=1e-5)
    assert torch.allclose(whitened.mT @ whitened / 7, torch.eye(4).expand(3, 4, 4), atol=1e-3)


def test_scales_and_multiples_of_earlier_features_in_later_ones_change_nothing():
    first, second = embeddings()
    mixing = torch.tensor(
        [[2.0, 1, 0, -1], [0, 3, 0, 0], [0, 0, 0.1, 4], [0, 0, 0, 0.5]]
    )  # the inverse is in the factor
    expected = WMSE(24, eps=0)(first, second).item()
    assert WMSE(24, eps=0)(first @ mixing, second @ mixing).item() == pytest.approx(expected, rel=1e-3)


def test_equal_views_give_zero_and_unrelated_ones_chance():
    first, _ = embeddings(2000, 8)
    other, _ = embeddings(2000, 8, seed=1)
    assert WMSE(16)(first, first).item() == pytest.approx(0, abs=1e-4)
    assert WMSE(200)(first, other).item() == pytest.approx(2, abs=0.05)


def test_the_gradient_flows_through_the_whitening():
    """If means and factors were constants, moving all embeddings of a view together would have a gradient."""
    first, second = embeddings()
    first.requires_grad_()
    (gradient,) = torch.autograd.grad(WMSE(8, eps=0)(first, second), first)
    assert torch.allclose(gradient.sum(0), torch.zeros(4), atol=1e-5) and gradient.abs().max() > 1e-3
    assert (gradient * (first - first.mean(0))).sum().abs() < 1e-4  # nor along the scale
    for place in ((0, 0), (7, 2)):
        step = torch.zeros_like(first)
        step[place] = 1e-2
        values = []
        for moved in (first + step, first - step):
            torch.manual_seed(3)
            values.append(WMSE(24, eps=0)(moved, second).item())
        (exact,) = torch.autograd.grad(WMSE(24, eps=0)(first, second), first)
        assert exact[place].item() == pytest.approx((values[0] - values[1]) / 2e-2, abs=2e-4)


def test_parts_are_drawn_from_the_generator_and_differ_from_batch_to_batch():
    first, second = embeddings()
    loss, again = (WMSE(8, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    values = [loss(first, second).item() for _ in range(2)]
    assert values[0] != values[1]
    torch.rand(7)
    assert [again(first, second).item() for _ in range(2)] == values


def test_the_size_is_twice_the_width_unless_it_is_given_and_images_left_over_are_left_out():
    assert WMSE()._parts(24, 4).shape == (3, 8)
    assert WMSE(iterations=2)._parts(25, 3).shape == (8, 6)
    parts = WMSE(10)._parts(25, 3)
    assert parts.shape == (2, 10) and len(parts.unique()) == 20


def test_constant_or_repeated_features_are_finite_with_shrinkage_and_nan_without():
    first, second = embeddings()
    first[:, 0], first[:, 1] = 2.0, first[:, 2]
    first.requires_grad_()
    loss = WMSE(8)(first, second)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(first.grad).all()
    assert WMSE(8, eps=0)(torch.ones(8, 4), second[:8]).isnan()


def test_a_covariance_without_a_factor_gives_nan_and_not_what_is_left_of_the_factorisation():
    multiples = torch.randn(40, 1, generator=torch.Generator().manual_seed(3)) * torch.tensor([1.0, 0.1, 0.7, 3])
    centred = (multiples - multiples.mean(0)).T
    factor, failed = torch.linalg.cholesky_ex(centred @ centred.T / 39)
    assert failed and torch.linalg.solve_triangular(factor, centred, upper=False).isfinite().all()
    assert whiten(multiples, eps=0).isnan().all() and whiten(multiples).isfinite().all()


def test_is_computed_in_float32_under_mixed_precision_and_in_half_precision():
    first, second = (view.half() for view in embeddings())
    loss = WMSE(24)
    torch.manual_seed(3)
    expected = loss(first.float(), second.float())
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(first, second), expected)


def test_small_batches_and_bad_values_are_refused():
    with pytest.raises(
        ValueError, match="of 6 images is smaller than the 8 .*; pass batches of at least 8 images, .* of 3 values"
    ):
        WMSE()(torch.zeros(6, 4), torch.zeros(6, 4))
    with pytest.raises(ValueError, match="size must be an integer of at least 2, got 1 "):
        WMSE(1)
    with pytest.raises(ValueError, match="iterations must be an integer of at least 1, got 0 "):
        WMSE(iterations=0)
    with pytest.raises(ValueError, match=r"eps must be a number in \[0, 1\), got 1 "):
        WMSE(eps=1)
    with pytest.raises(ValueError, match=r"shapes \(3, 4\) and \(3, 5\); pass two matrices"):
        WMSE()(torch.zeros(3, 4), torch.zeros(3, 5))
