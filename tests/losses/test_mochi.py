import pytest
import torch
from torch.nn.functional import normalize

from superself.losses import mix_hard_negatives


def vectors(n, seed, width=5):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def mix(query, negatives, hardest, mixed, query_mixed, exclude=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return mix_hard_negatives(query, negatives, generator, hardest, mixed, query_mixed, exclude)


def weights_of(point, parts):
    """The weights of directions in a point that mixes them, scaled to the sum 1, and what they leave unexplained."""
    solution = torch.linalg.lstsq(parts.T, point[:, None]).solution[:, 0]
    return solution / solution.sum(), (parts.T @ solution - point).norm().item()


def test_points_mix_two_different_ones_of_the_hardest_negatives_with_random_weights():
    query, negatives = vectors(3, 0), normalize(vectors(40, 1), dim=1)
    points = mix(query, negatives, hardest=3, mixed=60, query_mixed=0)
    assert points.shape == (3, 60, 5) and torch.allclose(points.norm(dim=2), torch.ones(3, 60))
    for i in range(3):
        hard = negatives[torch.stack([torch.dot(query[i], n) for n in negatives]).argsort(descending=True)[:3]]
        found = [weights_of(point, hard) for point in points[i]]
        assert max(error for _, error in found) < 1e-5
        weights = (
            torch.stack([weights for weights, _ in found]).sort(1).values
        )  # (60, 3): 0 and the two that were mixed
        assert weights[:, 0].abs().max() < 1e-4 and (weights[:, 2] < 1 - 1e-6).all()
        assert len(weights[:, 2].round(decimals=4).unique()) > 55  # not one draw for all points
        assert {tuple((w > 1e-4).tolist()) for w, _ in found} == {
            (False, True, True),
            (True, False, True),
            (True, True, False),
        }


def test_queries_do_not_share_their_weights():
    query, negatives = vectors(1, 0).expand(2, 5), normalize(vectors(40, 1), dim=1)
    first, second = mix(query, negatives, hardest=3, mixed=8, query_mixed=8)
    assert not torch.isclose(first, second).all(1).any()


def test_points_with_the_query_have_less_than_half_of_it():
    query, negatives = normalize(vectors(2, 0), dim=1), normalize(vectors(40, 1), dim=1)
    points = mix(query, negatives, hardest=1, mixed=0, query_mixed=200)
    for i in range(2):
        hardest = negatives[(negatives @ query[i]).argmax()]
        beta = torch.stack([weights_of(point, torch.stack([query[i], hardest]))[0][0] for point in points[i]])
        assert (beta > -1e-5).all() and (beta < 0.5 + 1e-5).all()
        assert beta.min() < 0.02 and beta.max() > 0.48 and beta.mean() == pytest.approx(0.25, abs=0.04)
        assert (points[i] @ query[i] > hardest @ query[i] - 1e-5).all()  # even harder


def test_a_number_worked_by_hand():
    """One negative at a right angle: with a fraction b of the query, the cosine is b / sqrt(b^2 + (1 - b)^2)."""
    generator = torch.Generator().manual_seed(4)
    beta = torch.rand(1, 1, 3, generator=generator)[0, 0, 2].item() / 2
    point = mix(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 1, 0, 1, seed=4)[0, 0]
    assert point[0].item() == pytest.approx(beta / (beta**2 + (1 - beta) ** 2) ** 0.5)


def test_excluded_negatives_are_never_mixed():
    negatives = torch.eye(5)
    query = torch.tensor([[3.0, 2.0, 1.0, 0.5, 0.4]]).expand(2, 5)
    exclude = torch.tensor([[True, False, True, True, False], [False] * 5])
    points = mix(query, negatives, hardest=3, mixed=50, query_mixed=0, exclude=exclude)
    assert (points[0, :, [0, 2, 3]] == 0).all() and (points[0, :, [1, 4]] > 0).any(0).all()
    assert (points[1, :, 3:] == 0).all()
    whole = mix(query, negatives, hardest=3, mixed=4, query_mixed=4, exclude=torch.ones(2, 5, dtype=torch.bool))
    assert torch.equal(whole, torch.zeros(2, 8, 5))


def test_a_single_negative_is_copied_and_fewer_than_the_hardest_are_all_taken():
    negatives = normalize(vectors(1, 1), dim=1)
    points = mix(vectors(2, 0), negatives, hardest=9, mixed=4, query_mixed=0)
    assert torch.allclose(points, negatives.expand(2, 4, 5), atol=1e-6)


def test_points_have_no_gradient_and_are_computed_in_float32():
    query, negatives = vectors(2, 0).requires_grad_(), normalize(vectors(9, 1), dim=1)
    assert not mix(query, negatives, 4, 3, 3).requires_grad
    expected = mix(query, negatives, 4, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mix(query, negatives, 4, 3, 3), expected)
    half = mix(query.half(), negatives, 4, 3, 3)
    assert half.dtype == torch.float32 and torch.isfinite(half).all()


def test_refuses_numbers_out_of_range():
    with pytest.raises(ValueError, match=r"hardest must be an integer of at least 1, got 0 \(it is how many"):
        mix(vectors(2, 0), vectors(3, 1), 0, 1, 1)
    with pytest.raises(ValueError, match="query_mixed must be an integer of at least 0, got -1"):
        mix(vectors(2, 0), vectors(3, 1), 1, 1, -1)
