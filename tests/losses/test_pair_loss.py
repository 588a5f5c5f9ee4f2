import math

import pytest
import torch
from torch.nn.functional import normalize

from superself.losses import InfoNCE, PairLoss


def vectors(n, seed):
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


def example():
    """Queries, keys, negatives of unit length, and which of them are left out; the last query has none left."""
    exclude = torch.rand(4, 6, generator=torch.Generator().manual_seed(3)) < 0.3
    exclude[3] = True
    return vectors(4, 0), vectors(4, 1), normalize(vectors(6, 2), dim=1), exclude


def slow(objective, query, key, negatives, exclude, temperature=0.2, alpha=None, normalized=True):
    """The loss, pair by pair."""
    result = 0.0
    for i, (q, k) in enumerate(zip(query, key, strict=True)):
        q, k = (q / q.norm(), k / k.norm()) if normalized else (q, k)
        s = (q @ k).item()
        others = [(q @ n).item() for j, n in enumerate(negatives) if not exclude[i, j]]
        if objective == "ip":
            result += (1 - s) + sum(1 + other for other in others)
        elif objective == "bce":
            result -= math.log(1 / (1 + math.exp(-s / temperature)))
            result -= sum(math.log(1 - 1 / (1 + math.exp(-other / temperature))) for other in others)
        else:
            weight = 1 if alpha is None else alpha / max(1, len(others))
            rest = sum(weight * math.exp(other / temperature) for other in others)
            result -= math.log(math.exp(s / temperature) / (math.exp(s / temperature) + rest))
    return result / len(query)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(("objective", "alpha"), [("ce", None), ("ce", 100.0), ("ip", None), ("bce", None)])
def test_equals_double_loop(objective, alpha, normalized):
    loss = PairLoss(objective, 0.4, alpha, normalized)(*example())
    assert loss.item() == pytest.approx(slow(objective, *example(), 0.4, alpha, normalized), rel=1e-5)


def test_numbers_worked_by_hand():
    """Cosine 0.6 with the key, 0.8 and 0 with the negatives, temperature 1."""
    query, key = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    negatives = torch.tensor([[0.8, 0.6], [0.0, 1.0]])
    assert PairLoss("ip")(query, key).item() == pytest.approx(0.4)
    assert PairLoss("ip")(query, key, negatives).item() == pytest.approx(0.4 + 1.8 + 1.0)
    assert PairLoss("bce", 1.0)(query, key).item() == pytest.approx(0.43748795)  # ln(1 + e^-0.6)
    assert PairLoss("bce", 1.0)(query, key, negatives).item() == pytest.approx(0.43748795 + 1.17110067 + 0.69314718)
    assert PairLoss("ce", 1.0)(query, key, negatives).item() == pytest.approx(1.01892471)  # ln(1 + e^0.2 + e^-0.6)
    doubled = PairLoss("ce", 1.0, alpha=4.0)(query, key, negatives)  # each of the two negatives counts twice
    assert doubled.item() == pytest.approx(1.51302)


def test_cross_entropy_is_info_nce_in_value_and_gradient():
    query, key, negatives, exclude = example()
    gradients = []
    for loss in (PairLoss("ce", 0.3), InfoNCE(0.3)):
        given = query.clone().requires_grad_()
        value = loss(given, key, negatives, exclude)
        value.backward()
        gradients.append((value, given.grad))
    assert torch.allclose(gradients[0][0], gradients[1][0]) and torch.allclose(gradients[0][1], gradients[1][1])


def test_with_alpha_the_loss_does_not_depend_on_how_many_negatives_there_are():
    query, key, negatives, _ = example()
    once, thrice = (PairLoss("ce", 0.2, 64.0)(query, key, negatives.repeat(n, 1)) for n in (1, 3))
    assert once.item() == pytest.approx(thrice.item(), rel=1e-5)
    assert PairLoss("ce", 0.2, 6.0)(query, key, negatives).item() == pytest.approx(
        PairLoss("ce", 0.2)(query, key, negatives).item(), rel=1e-5
    )


@pytest.mark.parametrize(
    ("objective", "alpha", "chance"),
    [("ce", None, math.log(7)), ("ce", 50.0, math.log(51)), ("ip", None, 7), ("bce", None, 7 * math.log(2))],
)
def test_chance_level_is_that_of_orthogonal_vectors(objective, alpha, chance):
    rows = torch.eye(8)
    assert PairLoss(objective, 0.2, alpha)(rows[:1], rows[1:2], rows[2:]).item() == pytest.approx(chance, rel=1e-5)


@pytest.mark.parametrize("objective", ["ce", "ip", "bce"])
def test_a_query_without_negatives_has_a_finite_gradient(objective):
    query, key, negatives, _ = example()
    query.requires_grad_()
    PairLoss(objective)(query, key, negatives, torch.ones(4, 6, dtype=torch.bool)).backward()
    assert torch.isfinite(query.grad).all()
    alone, excluded = (
        PairLoss(objective)(query, key),
        PairLoss(objective)(query, key, negatives, torch.ones(4, 6, dtype=torch.bool)),
    )
    assert alone.item() == pytest.approx(excluded.item(), abs=1e-6)


@pytest.mark.parametrize("objective", ["ce", "ip", "bce"])
def test_is_computed_in_float32_under_mixed_precision(objective):
    query, key, negatives, exclude = example()
    loss = PairLoss(objective, 0.07)(query, key, negatives, exclude)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(PairLoss(objective, 0.07)(query, key, negatives, exclude), loss)


def test_wrong_arguments_and_shapes_are_refused():
    with pytest.raises(ValueError, match="objective='l2' is unknown; pass 'ce', 'ip' or 'bce'"):
        PairLoss("l2")
    with pytest.raises(ValueError, match="temperature must be a number above 0, got 0"):
        PairLoss(temperature=0)
    with pytest.raises(ValueError, match="alpha=3 weights the negatives of objective=\"ce\", not those of 'ip'"):
        PairLoss("ip", alpha=3)
    with pytest.raises(ValueError, match=r"query \(4, 5\) and key \(4, 3\) differ in shape"):
        PairLoss()(torch.ones(4, 5), torch.ones(4, 3))
