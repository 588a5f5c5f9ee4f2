import math

import pytest
import torch

from superself.losses import DetConLoss

SEGMENTS = torch.tensor(
    [[[3, 1, 3, 2], [3, 1, 3, 0]], [[1, 2, 2, 4], [1, 0, 0, 4]], [[5, 0, 0, 0], [0, 0, 0, 0]]]
)  # (3, 2, 4)


def vectors(seed=0, shape=(3, 2, 4, 5)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slow_loss(query, segments, key, t, beta=0.0, tau=0.0):
    """One query at a time, with exponentials and sums."""
    images, views, samples, _ = query.shape
    places = [(b, v, s) for b in range(images) for v in range(views) for s in range(samples)]
    total, weight_of_all = 0.0, 0.0
    for b, v, s in places:
        own = segments[b, v, s].item()
        if own == 0 or segments[b, 1 - v, s] == 0:
            continue
        copies = sum(segments[b, v, r].item() == own and segments[b, 1 - v, r].item() == own for r in range(samples))
        negatives = []
        for c, u, r in places:
            other = segments[c, u, r].item()
            if other != 0 and not (c == b and other == own):
                negatives.append(torch.cosine_similarity(query[b, v, s], key[c, u, r], dim=0).item() / t)
        positive = math.exp(torch.cosine_similarity(query[b, v, s], key[b, 1 - v, s], dim=0).item() / t)
        n = len(negatives)
        importance = [math.exp(beta * x) for x in negatives]
        reweighted = sum(i * math.exp(x) for i, x in zip(importance, negatives, strict=True)) / (sum(importance) / n)
        reweighted = max((reweighted - tau * n * positive) / (1 - tau), n * math.exp(-1 / t)) if tau else reweighted
        total += -math.log(positive / (positive + reweighted)) / copies
        weight_of_all += 1 / copies
    return total / weight_of_all


@pytest.mark.parametrize(("beta", "tau_plus"), [(0.0, 0.0), (1.0, 0.0), (0.0, 0.1), (0.5, 0.1), (0.5, 0.6)])
@pytest.mark.parametrize("with_keys", [False, True])
def test_loss_equals_a_loop_over_pairs(beta, tau_plus, with_keys):
    query, key = vectors(), vectors(1) if with_keys else None
    found = DetConLoss(0.5, beta, tau_plus)(query, SEGMENTS, key).item()
    assert found == pytest.approx(
        slow_loss(query, SEGMENTS, key if with_keys else query, 0.5, beta, tau_plus), rel=1e-4
    )


def test_number_worked_by_hand():
    """Two images of one segment, whose views agree and which are orthogonal, t = 1: -ln(e / (e + 2)) = 0.55144471."""
    query = torch.eye(2)[:, None, None].expand(2, 2, 1, 2)
    assert DetConLoss(1.0)(query, torch.ones(2, 2, 1, dtype=torch.long)).item() == pytest.approx(0.55144471)


def test_chance_level_is_the_logarithm_of_the_number_of_candidates():
    same = torch.ones(3, 2, 2, 4)
    segments = torch.tensor([1, 2]).expand(3, 2, 2)  # each has 10 of the 12 as negatives
    assert DetConLoss()(same, segments).item() == pytest.approx(math.log(11))


def test_copies_of_a_segment_change_nothing_for_it():
    query, once = vectors(shape=(1, 2, 2, 5)), torch.tensor([[[1, 2], [1, 2]]])
    thrice = query[:, :, [0, 0, 0, 1]], once[:, :, [0, 0, 0, 1]]
    alone = DetConLoss(0.5)(query[:, :, :1], once[:, :, :1])
    assert alone == 0  # no negatives: other copies are none, and neither is the segment itself
    assert DetConLoss(0.5)(query[:, :, [0, 0, 0]], once[:, :, [0, 0, 0]]) == 0
    expected = slow_loss(*thrice, thrice[0], 0.5)
    assert DetConLoss(0.5)(*thrice).item() == pytest.approx(expected, rel=1e-5)


def test_a_segment_in_one_view_only_is_a_negative_and_no_positive():
    query = vectors(shape=(2, 2, 1, 5)).requires_grad_()
    segments = torch.tensor([[[1], [1]], [[1], [0]]])  # the second image's segment is in the first view only
    DetConLoss()(query, segments).backward()
    assert query.grad[1, 0].any() and not query.grad[1, 1].any()
    without = DetConLoss()(query, torch.tensor([[[1], [1]], [[0], [0]]]))
    assert without == 0 < DetConLoss()(query, segments)


@pytest.mark.parametrize("tau_plus", [0.0, 0.1])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_batches_without_pairs_give_zero_and_finite_gradients(beta, tau_plus):
    for segments in (torch.zeros(2, 2, 3, dtype=torch.long), torch.tensor([[[1], [0]]]), torch.tensor([[[1], [1]]])):
        query = vectors(shape=(*segments.shape, 4)).requires_grad_()
        loss = DetConLoss(beta=beta, tau_plus=tau_plus)(query, segments)
        loss.backward()
        assert loss == 0 and torch.isfinite(query.grad).all()


def test_half_precision_and_sharp_temperatures_stay_finite():
    query = vectors().half().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = DetConLoss(0.01, beta=1.0, tau_plus=0.1)(query, SEGMENTS)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss) and torch.isfinite(query.grad).all()
    assert loss.item() == pytest.approx(DetConLoss(0.01, 1.0, 0.1)(query.float(), SEGMENTS).item(), rel=1e-6)


def test_gradient_is_that_of_finite_differences():
    query = vectors(shape=(2, 2, 4, 3)).requires_grad_()
    loss = DetConLoss(0.5, beta=0.5, tau_plus=0.05)
    gradient = torch.autograd.grad(loss(query, SEGMENTS[:2]), query)[0]
    step = vectors(2, query.shape) * 1e-2
    change = loss(query + step, SEGMENTS[:2]) - loss(query - step, SEGMENTS[:2])
    assert change.item() / 2 == pytest.approx((gradient * step).sum().item(), rel=1e-2)


def test_wrong_shapes_and_numbers_are_refused():
    with pytest.raises(ValueError, match=r"query \(3, 2, 4, 5\).* do not fit; pass \(B, 2, S, E\)"):
        DetConLoss()(vectors(), SEGMENTS[:, :, :2])
    with pytest.raises(ValueError, match=r"tau_plus must be a number in \[0, 1\)"):
        DetConLoss(tau_plus=1.0)
    with pytest.raises(ValueError, match="temperature"):
        DetConLoss(0)


def test_the_sum_over_negatives_is_at_least_what_opposite_ones_give():
    """Two images in opposite directions, t = 1: tau = 0.05 would leave 2 x 0.244, at least 2 / e are kept: ln(1 + 2 / e^2)."""
    query = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1).expand(2, 2, 1, 1)
    loss = DetConLoss(1.0, tau_plus=0.05)(query, torch.ones(2, 2, 1, dtype=torch.long))
    assert loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-2)), rel=1e-5)
