import math

import pytest
import torch
from torch.nn.functional import log_softmax, normalize

from superself.losses import SwAVLoss, sinkhorn


def cosines(rows=6, prototypes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = normalize(torch.randn(rows, 8, generator=generator), dim=1)
    return z @ normalize(torch.randn(prototypes, 8, generator=generator), dim=1).T


def slow_sinkhorn(scores, epsilon, iterations):
    """The matrix of the paper, element by element, in double precision; its rows are scaled to 1 at the end."""
    count, prototypes = scores.shape
    q = [[math.exp(scores[n, k].item() / epsilon) for k in range(prototypes)] for n in range(count)]
    for _ in range(iterations):
        for k in range(prototypes):
            share = sum(q[n][k] for n in range(count))
            for n in range(count):
                q[n][k] /= share * prototypes
        for n in range(count):
            share = sum(q[n])
            q[n] = [value / share / count for value in q[n]]
    return torch.tensor(q) * count


@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn_equals_scaling_in_turn(iterations):
    scores = cosines()
    assert torch.allclose(sinkhorn(scores, 0.05, iterations), slow_sinkhorn(scores, 0.05, iterations), atol=1e-5)


def test_sinkhorn_by_hand():
    # exp(scores) = [[1, 3], [1, 1]]; prototypes: [[1/2, 3/4], [1/2, 1/4]]; images: [[2/5, 3/5], [2/3, 1/3]]
    codes = sinkhorn(torch.tensor([[1.0, 3.0], [1.0, 1.0]]).log(), epsilon=1.0, iterations=1)
    assert torch.allclose(codes, torch.tensor([[2 / 5, 3 / 5], [2 / 3, 1 / 3]]))


def test_sinkhorn_equals_lightly():
    lightly = pytest.importorskip("lightly.loss.swav_loss")
    assert torch.allclose(sinkhorn(cosines()), lightly.sinkhorn(cosines()), atol=1e-5)


def test_many_iterations_use_all_prototypes_equally_even_if_all_samples_prefer_one():
    scores = cosines(rows=12)
    scores[:, 0] += 0.5
    codes = sinkhorn(scores, epsilon=0.5, iterations=200)
    assert torch.allclose(codes.sum(0), torch.full((4,), 3.0), atol=1e-4)
    assert torch.allclose(codes.sum(1), torch.ones(12), atol=1e-5)


def test_sinkhorn_stays_finite_where_exponentials_overflow():
    codes = sinkhorn(100 * cosines(), epsilon=0.01)
    assert torch.isfinite(codes).all() and torch.allclose(codes.sum(1), torch.ones(6))


def test_sinkhorn_computes_in_float32_and_without_a_gradient():
    scores = cosines().half().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        codes = sinkhorn(scores)
    assert codes.dtype == torch.float32 and not codes.requires_grad
    assert torch.allclose(codes, sinkhorn(scores.detach().float()))


def test_samples_that_do_not_count_leave_the_codes_of_the_others_unchanged():
    scores, others = cosines(), cosines(5, seed=1)
    counted = torch.arange(11) >= 5
    codes = sinkhorn(torch.cat([others, scores]), counted=counted)
    assert torch.allclose(codes[5:], sinkhorn(scores), atol=1e-6)
    assert torch.isfinite(codes).all()
    all_count = sinkhorn(torch.cat([others, scores]), counted=torch.ones(11, dtype=torch.bool))
    assert torch.allclose(all_count, sinkhorn(torch.cat([others, scores])))
    assert not torch.allclose(all_count[5:], codes[5:], atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"epsilon": 0}, "epsilon must be .*, got 0"),
        ({"iterations": 0}, "iterations must be .*, got 0"),
        ({"scores": torch.zeros(2, 3, 4)}, r"scores have shape \(2, 3, 4\); pass one row for each sample"),
    ],
)
def test_wrong_arguments_of_sinkhorn_are_refused(arguments, error):
    with pytest.raises(ValueError, match=error):
        sinkhorn(**{"scores": cosines(), **arguments})


def views(count=4):
    return [cosines(seed=seed) for seed in range(count)]


def test_loss_equals_loops_over_views_images_and_prototypes():
    scores = views()
    codes = [sinkhorn(score) for score in scores[:2]]
    terms = []
    for i, code in enumerate(codes):
        for v, score in enumerate(scores):
            if v == i:
                continue
            for q, s in zip(code.double(), score.double(), strict=True):
                total = sum(math.exp(x / 0.1) for x in s)
                terms.append(-sum(q[k].item() * math.log(math.exp(s[k] / 0.1) / total) for k in range(4)))
    assert SwAVLoss()(scores, codes).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_loss_by_hand():
    # the code of each view is one prototype; the other view gives it probability 1/4
    scores = [torch.tensor([[0.0, math.log(3)]])] * 2
    codes = [torch.tensor([[1.0, 0.0]])] * 2
    assert SwAVLoss(temperature=1.0)(scores, codes).item() == pytest.approx(math.log(4))


def test_loss_equals_lightly():
    lightly = pytest.importorskip("lightly.loss")
    scores = views(5)
    other = lightly.SwaVLoss()(scores[:2], scores[2:])
    assert SwAVLoss()(scores, [sinkhorn(score) for score in scores[:2]]).item() == pytest.approx(other.item(), rel=1e-5)
    queued = [cosines(10, seed=8), cosines(10, seed=9)]
    other = lightly.SwaVLoss()(scores[:2], scores[2:], queued)
    codes = [sinkhorn(torch.cat(pair))[:6] for pair in zip(scores, queued, strict=False)]
    assert SwAVLoss()(scores, codes).item() == pytest.approx(other.item(), rel=1e-5)


def test_no_gradient_flows_into_codes_and_each_view_gets_one_from_other_views_only():
    scores = [score.requires_grad_() for score in views(3)]
    codes = [torch.full((6, 4), 0.25), sinkhorn(scores[1].detach())]
    codes[0].requires_grad_()
    SwAVLoss()(scores, codes).backward()
    assert codes[0].grad is None and all(score.grad.abs().max() > 0 for score in scores)
    from_second = -(codes[1] * log_softmax(scores[0] / 0.1, 1)).sum(1).mean() / 4  # 2 codes with 2 other views each
    assert torch.allclose(scores[0].grad, torch.autograd.grad(from_second, scores[0])[0])


def test_half_precision_gives_the_loss_of_float32():
    scores = [score.bfloat16() for score in views()]
    codes = [sinkhorn(score) for score in scores[:2]]
    with torch.autocast("cpu", torch.bfloat16):
        loss = SwAVLoss()(scores, codes)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(SwAVLoss()([score.float() for score in scores], codes).item())


def test_uniform_predictions_give_the_chance_level():
    scores = [torch.zeros(6, 4)] * 3
    assert SwAVLoss()(scores, [sinkhorn(cosines())]).item() == pytest.approx(math.log(4))


@pytest.mark.parametrize(
    ("scores", "codes", "error"),
    [
        (1, 1, "scores of 1 views and codes of 1; pass scores of at least two views"),
        (2, 0, "scores of 2 views and codes of 0"),
        (2, 3, "scores of 2 views and codes of 3"),
    ],
)
def test_a_wrong_number_of_views_is_refused(scores, codes, error):
    with pytest.raises(ValueError, match=error):
        SwAVLoss()([torch.zeros(2, 3)] * scores, [torch.zeros(2, 3)] * codes)


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"the shapes \[\(2, 3\), \(2, 4\)\]; all of them must be \(B, K\)"):
        SwAVLoss()([torch.zeros(2, 3)] * 2, [torch.zeros(2, 4)])
    with pytest.raises(ValueError, match="temperature must be .*, got 0"):
        SwAVLoss(temperature=0)
