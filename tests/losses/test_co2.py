import math

import pytest
import torch
from torch.nn.functional import normalize

from superself.losses import CO2


def vectors(n, seed):
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


def slow_divergence(query, key, negatives, exclude, temperature):
    """Half of KL(P || Q) + KL(Q || P) for each image, one negative at a time."""
    total = 0.0
    for i in range(len(query)):
        kept = [j for j in range(len(negatives)) if not exclude[i, j]]
        weights = [
            [math.exp(torch.cosine_similarity(z[i], negatives[j], dim=0).item() / temperature) for j in kept]
            for z in (query, key)
        ]
        q, p = ([w / sum(part) for w in part] for part in weights)
        total += sum(b * math.log(b / a) + a * math.log(a / b) for a, b in zip(q, p, strict=True)) / 2
    return total / len(query)


@pytest.mark.parametrize("excluding", [False, True])
def test_co2_equals_a_double_loop(excluding):
    query, key, negatives = vectors(4, 0), vectors(4, 1), normalize(vectors(6, 2), dim=1)
    exclude = torch.rand(4, 6, generator=torch.Generator().manual_seed(3)) < (0.3 if excluding else 0)
    slow = slow_divergence(query, key, negatives, exclude, 0.2)
    assert CO2(0.2)(query, key, negatives, exclude).item() == pytest.approx(slow, rel=1e-4)
    if not excluding:
        assert CO2(0.2)(query, key, negatives).item() == pytest.approx(slow, rel=1e-4)


def test_number_worked_by_hand():
    """Q = (e, 1) / (e + 1), P = (1, e) / (e + 1): half of both divergences together is (e - 1) / (e + 1) = 0.46211716."""
    query, key = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    assert CO2(1.0)(query, key, torch.eye(2)).item() == pytest.approx((math.e - 1) / (math.e + 1))
    assert CO2(1.0)(query, key, torch.eye(2)).item() == pytest.approx(0.46211716)


def test_is_zero_for_equal_views_and_symmetric():
    query, key, negatives = vectors(4, 0), vectors(4, 1), normalize(vectors(6, 2), dim=1)
    assert CO2()(query, 2 * query, negatives).item() == pytest.approx(0, abs=1e-6)
    assert CO2()(query, key, negatives).item() == pytest.approx(CO2()(key, query, negatives).item())


def test_gradients_reach_both_views_and_descend():
    query, key = vectors(4, 0).requires_grad_(), vectors(4, 1).requires_grad_()
    negatives = normalize(vectors(6, 2), dim=1)
    loss = CO2(0.2)(query, key, negatives)
    loss.backward()
    assert query.grad.norm() > 0 and key.grad.norm() > 0
    with torch.no_grad():
        assert CO2(0.2)(query - 0.05 * query.grad, key, negatives) < loss


def test_a_query_without_negatives_has_loss_zero_and_a_finite_gradient():
    query, exclude = vectors(2, 0).requires_grad_(), torch.tensor([[True, True, True], [False, True, False]])
    loss = CO2(0.2)(query, vectors(2, 1), normalize(vectors(3, 2), dim=1), exclude)
    loss.backward()
    assert loss > 0 and torch.equal(query.grad[0], torch.zeros(5)) and torch.isfinite(query.grad).all()
    assert CO2()(query, vectors(2, 1), normalize(vectors(3, 2), dim=1), torch.ones(2, 3, dtype=torch.bool)).item() == 0


def test_is_computed_in_float32_under_mixed_precision_and_from_half_precision():
    query, key, negatives = (normalize(vectors(n, seed), dim=1) for seed, n in enumerate((4, 4, 600)))
    loss = CO2()(query, key, negatives)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(CO2()(query, key, negatives), loss)
    assert torch.isfinite(CO2(0.01)(query.half(), -query.half(), negatives))


def test_refuses_bad_temperature_and_shapes():
    with pytest.raises(ValueError, match="temperature must be a number above 0, got 0 "):
        CO2(0)
    with pytest.raises(ValueError, match=r"query \(4, 5\) and key \(3, 5\) differ in shape"):
        CO2()(vectors(4, 0), vectors(3, 1), vectors(6, 2))
