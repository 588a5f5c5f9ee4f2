import math

import pytest
import torch
from torch.nn.functional import normalize

from superself.losses import InfoNCE


def vectors(n, seed):
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("excluding", [False, True])
def test_info_nce_equals_double_loop(excluding):
    query, positive, negatives = vectors(4, 0), vectors(4, 1), normalize(vectors(6, 2), dim=1)
    exclude = torch.rand(4, 6, generator=torch.Generator().manual_seed(3)) < 0.3 if excluding else None
    slow = 0.0
    for i in range(4):
        alike = math.exp(torch.cosine_similarity(query[i], positive[i], dim=0).item() / 0.2)
        total = alike
        for j in range(6):
            if exclude is None or not exclude[i, j]:
                total += math.exp(torch.cosine_similarity(query[i], negatives[j], dim=0).item() / 0.2)
        slow -= math.log(alike / total) / 4
    assert InfoNCE(0.2)(query, positive, negatives, exclude).item() == pytest.approx(slow, rel=1e-5)


def test_number_worked_by_hand():
    """Positive at cosine 1, two negatives at 0 and -1, temperature 1: -ln(e / (e + 1 + 1/e)) = 0.40760596."""
    query = torch.tensor([[2.0, 0.0]])
    negatives = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    assert InfoNCE(1.0)(query, 3 * query, negatives).item() == pytest.approx(0.40760596)


def test_chance_level_is_the_logarithm_of_the_number_of_candidates():
    same = torch.tensor([[1.0, 0.0]])
    assert InfoNCE()(same, same, same.expand(9, 2)).item() == pytest.approx(math.log(10))
    assert InfoNCE(alpha=99)(same, same, same.expand(9, 2)).item() == pytest.approx(math.log(100))


def test_alpha_equals_a_double_loop_over_the_negatives_that_are_left():
    query, positive, negatives = vectors(4, 0), vectors(4, 1), normalize(vectors(6, 2), dim=1)
    exclude = torch.rand(4, 6, generator=torch.Generator().manual_seed(3)) < 0.3
    slow = 0.0
    for i in range(4):
        alike = math.exp(torch.cosine_similarity(query[i], positive[i], dim=0).item() / 0.2)
        left = [j for j in range(6) if not exclude[i, j]]
        rest = sum(math.exp(torch.cosine_similarity(query[i], negatives[j], dim=0).item() / 0.2) for j in left)
        slow -= math.log(alike / (alike + 40 / len(left) * rest)) / 4
    assert InfoNCE(0.2, alpha=40)(query, positive, negatives, exclude).item() == pytest.approx(slow, rel=1e-5)


def test_alpha_of_the_number_of_negatives_changes_nothing():
    query, positive, negatives = vectors(4, 0), vectors(4, 1), normalize(vectors(6, 2), dim=1)
    assert torch.allclose(InfoNCE(alpha=6)(query, positive, negatives), InfoNCE()(query, positive, negatives))


def test_alpha_is_a_margin_on_the_positive_worked_by_hand():
    """Positive at cosine 1, two negatives at 0, t = 1, alpha = 6: -ln(e / (e + 3 + 3)) = ln(1 + 6 / e)."""
    query, negatives = torch.tensor([[2.0, 0.0, 0.0]]), torch.eye(3)[1:]
    assert InfoNCE(1.0, alpha=6)(query, query, negatives).item() == pytest.approx(math.log(1 + 6 / math.e))


def test_half_of_the_negatives_give_the_same_loss_in_expectation_with_alpha_but_not_without():
    query, positive, negatives = vectors(8, 0), vectors(8, 1), normalize(vectors(4096, 2), dim=1)
    whole = InfoNCE(0.5)(query, positive, negatives).item()
    halves = [InfoNCE(0.5, alpha=4096)(query, positive, half).item() for half in negatives.chunk(2)]
    assert halves == [pytest.approx(whole, rel=0.01)] * 2
    assert InfoNCE(0.5)(query, positive, negatives[:2048]).item() == pytest.approx(whole - math.log(2), rel=0.01)


def test_negatives_of_a_query_alone_count_for_it_only():
    query, positive, negatives = vectors(2, 0), vectors(2, 1), normalize(vectors(6, 2), dim=1)
    own = normalize(vectors(6, 3).view(2, 3, 5), dim=2)
    separate = [InfoNCE(0.2)(query[[i]], positive[[i]], torch.cat([negatives, own[i]])).item() for i in range(2)]
    assert InfoNCE(0.2)(query, positive, negatives, own=own).item() == pytest.approx(sum(separate) / 2, rel=1e-5)


def test_a_query_whose_negatives_are_all_excluded_has_loss_zero_and_a_finite_gradient():
    query, positive = vectors(4, 0).requires_grad_(), vectors(4, 1)
    negatives, exclude = normalize(vectors(6, 2), dim=1), torch.zeros(4, 6, dtype=torch.bool)
    assert InfoNCE()(query, positive, negatives, ~exclude).item() == 0
    exclude[1] = True
    loss = InfoNCE(0.2)(query, positive, negatives, exclude)
    others = [0, 2, 3]
    rest = InfoNCE(0.2)(query[others], positive[others], negatives)
    assert loss.item() == pytest.approx(rest.item() * 3 / 4, rel=1e-5)
    loss.backward()
    assert torch.isfinite(query.grad).all() and torch.equal(query.grad[1], torch.zeros(5))


def test_is_computed_in_float32_under_mixed_precision():
    query, positive, negatives = (normalize(vectors(n, seed), dim=1) for seed, n in enumerate((4, 4, 600)))
    loss = InfoNCE(0.07)(query, positive, negatives)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(InfoNCE(0.07)(query, positive, negatives), loss)


def test_stays_finite_in_half_precision_at_small_temperatures():
    query = normalize(vectors(4, 0), dim=1).to(torch.float16)
    assert torch.isfinite(InfoNCE(0.01)(query, -query, normalize(vectors(6, 2), dim=1)))


def test_gradients_reach_query_and_positive():
    query, positive = vectors(4, 0).requires_grad_(), vectors(4, 1).requires_grad_()
    InfoNCE()(query, positive, normalize(vectors(6, 2), dim=1)).backward()
    assert query.grad.norm() > 0 and positive.grad.norm() > 0


def test_refuses_bad_temperature_and_shapes():
    with pytest.raises(ValueError, match="temperature must be a number above 0, got 0 "):
        InfoNCE(0)
    with pytest.raises(ValueError, match=r"alpha must be a number above 0, got 0 \(it is the number of negatives"):
        InfoNCE(alpha=0)
    with pytest.raises(ValueError, match=r"query \(4, 5\) and positive \(3, 5\) differ in shape"):
        InfoNCE()(vectors(4, 0), vectors(3, 1), vectors(6, 2))
