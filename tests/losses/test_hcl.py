import math

import pytest
import torch

from superself.losses import HCL, NTXent


def vectors(n, seed):
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


def slow_hcl(first, second, t, beta, tau_plus):
    """As the formula is written, anchor by anchor in float64, with N = 2B - 2 negatives."""
    everyone = torch.nn.functional.normalize(torch.cat([first, second]).double(), dim=1)
    count, losses = len(first), []
    for i in range(2 * count):
        positive = math.exp((everyone[i] @ everyone[(i + count) % (2 * count)]).item() / t)
        negatives = [
            math.exp((everyone[i] @ everyone[k]).item() / t) for k in range(2 * count) if k % count != i % count
        ]
        assert len(negatives) == 2 * count - 2
        importance = [value**beta for value in negatives]
        mean = sum(importance) / len(negatives)
        reweighted = sum(w / mean * value for w, value in zip(importance, negatives, strict=True))
        ng = (reweighted - tau_plus * len(negatives) * positive) / (1 - tau_plus)
        ng = max(ng, len(negatives) * math.exp(-1 / t))
        losses.append(-math.log(positive / (positive + ng)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("t", [0.1, 0.5])
@pytest.mark.parametrize(("beta", "tau_plus"), [(0.0, 0.0), (1.0, 0.0), (0.0, 0.1), (1.0, 0.1), (2.5, 0.3)])
def test_hcl_equals_the_loop(t, beta, tau_plus):
    first, second = vectors(5, 0), vectors(5, 1)
    for other in (second, first + 0.3 * second):  # with similar positives the correction exceeds the sum: clamped
        expected = slow_hcl(first, other, t, beta, tau_plus)
        assert HCL(t, beta, tau_plus)(first, other).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_without_beta_and_tau_plus_it_is_nt_xent_exactly():
    first, second = vectors(6, 0), vectors(6, 1)
    leaves = [first.clone().requires_grad_() for _ in range(2)]
    losses = [loss(leaf, second) for loss, leaf in zip((HCL(0.3, 0, 0), NTXent(0.3)), leaves, strict=True)]
    sum(losses).backward()
    assert torch.equal(*losses) and torch.equal(*(leaf.grad for leaf in leaves))


def test_number_worked_by_hand():
    """Positive at 1, two negatives at 0, t = 1: Ng = (2 - 0.1 * 2 e) / 0.9 = 1.6181596, -ln(e / (e + Ng)) = 0.4670540."""
    views = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    assert HCL(1.0, beta=1.0, tau_plus=0.1)(views, views).item() == pytest.approx(0.4670540, rel=1e-6)


def test_the_sum_of_negatives_is_at_least_n_times_the_smallest_possible():
    """Positives align and negatives are opposite, so the corrected sum is negative: ln(1 + N exp(-1/t) / exp(1/t)), t = 1."""
    views = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    leaf = views.clone().requires_grad_()
    loss = HCL(1.0, beta=1.0, tau_plus=0.5)(leaf, views)
    loss.backward()
    assert loss.item() == pytest.approx(math.log1p(2 * math.exp(-2)), rel=1e-5)
    assert torch.isfinite(leaf.grad).all()


def test_hard_negatives_weigh_more_with_beta():
    first, second = vectors(6, 0), vectors(6, 1)
    values = [HCL(0.5, beta, 0)(first, second).item() for beta in (0, 0.5, 1, 4)]
    assert values == sorted(values) and values[-1] > values[0] + 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": -1}, "beta must be a number of at least 0, got -1"),
        ({"tau_plus": 1}, r"tau_plus must be a number in \[0, 1\), got 1"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        HCL(**arguments)
