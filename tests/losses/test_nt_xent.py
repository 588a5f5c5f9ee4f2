import math

import pytest
import torch
from torch.nn.functional import normalize

from superself.losses import DCL, DCLW, HCL, InfoNCE, NTXent

LOSSES = [NTXent(0.2), DCL(0.2), DCLW(0.2), HCL(0.2), HCL(0.2, tau_plus=0)]
NAMES = [*(type(loss).__name__ for loss in LOSSES[:4]), "HCL without correction"]


def vectors(n, seed):
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


def cosine(a, b):
    return torch.cosine_similarity(a, b, dim=0).item()


def test_nt_xent_equals_the_loop_over_all_pairs_of_both_views():
    first, second = vectors(4, 0), vectors(4, 1)
    everyone, slow = [*first, *second], 0.0
    for i in range(8):
        j = (i + 4) % 8
        total = sum(math.exp(cosine(everyone[i], everyone[k]) / 0.2) for k in range(8) if k != i)  # 2B - 1 candidates
        slow -= math.log(math.exp(cosine(everyone[i], everyone[j]) / 0.2) / total) / 8
    assert NTXent(0.2)(first, second).item() == pytest.approx(slow, rel=1e-5)


def test_number_worked_by_hand():
    """Two images at a right angle, each with equal views, t = 1: -ln(e / (e + 1 + 1)) = 0.55144471 for each of four anchors."""
    views = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    assert NTXent(1.0)(views, 4 * views).item() == pytest.approx(0.55144471)


def test_pairs_of_the_same_view_are_candidates():
    """The second image's first view moves towards the first image's first view: the loss must rise by that pair alone."""
    views = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    apart, close = views.clone(), torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]])
    other = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    assert NTXent(1.0)(close, other).item() > NTXent(1.0)(apart, other).item() + 0.1


@pytest.mark.parametrize(("loss", "candidates"), list(zip(LOSSES, (9, 8, 8, 9, 9), strict=True)), ids=NAMES)
def test_where_all_similarities_are_equal_the_loss_is_the_logarithm_of_the_candidates(loss, candidates):
    same = torch.ones(5, 3)
    assert loss(same, same).item() == pytest.approx(math.log(candidates), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_both_directions_count_alike(loss):
    assert loss(vectors(4, 0), vectors(4, 1)).item() == pytest.approx(loss(vectors(4, 1), vectors(4, 0)).item())


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_is_computed_in_float32_under_mixed_precision(loss):
    first, second = vectors(4, 0), vectors(4, 1)
    expected = loss(first, second)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(first, second), expected)


@pytest.mark.parametrize("kind", [NTXent, DCL, DCLW, HCL])
@pytest.mark.parametrize("sign", [-1, 1])
def test_loss_and_gradient_stay_finite_in_half_precision_at_a_temperature_of_a_hundredth(kind, sign):
    first = vectors(4, 0).to(torch.float16).requires_grad_()
    loss = kind(0.01)(first, sign * first)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(first.grad).all()


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_gradients_reach_both_views(loss):
    first, second = vectors(4, 0).requires_grad_(), vectors(4, 1).requires_grad_()
    loss(first, second).backward()
    assert first.grad.norm() > 0 and second.grad.norm() > 0


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_a_batch_of_one_image_has_no_negatives_and_loss_zero(loss):
    first = vectors(1, 0).requires_grad_()
    value = loss(first, vectors(1, 1))
    value.backward()
    assert value.item() == 0 and torch.equal(first.grad, torch.zeros(1, 5))


def test_with_other_negatives_it_is_info_nce():
    first, second, negatives = vectors(4, 0), vectors(4, 1), normalize(vectors(6, 2), dim=1)
    exclude = torch.rand(4, 6, generator=torch.Generator().manual_seed(3)) < 0.3
    for given in (None, exclude):
        expected = InfoNCE(0.2)(first, second, negatives, given)
        assert NTXent(0.2)(first, second, negatives, given).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_what_is_excluded_has_no_influence_even_where_that_is_every_negative_of_an_anchor(loss):
    first, second = vectors(3, 0).requires_grad_(), vectors(3, 1)
    negatives, exclude = normalize(vectors(6, 2), dim=1), torch.zeros(3, 6, dtype=torch.bool)
    exclude[0, 2], exclude[2] = True, True
    weighted = isinstance(loss, DCLW)
    value = loss(first, second, negatives, exclude)
    value.backward()
    assert torch.isfinite(first.grad).all() and torch.equal(first.grad[2], torch.zeros(5))
    changed = negatives.clone()
    changed[2] = -changed[2]
    assert weighted or loss(first[:1], second[:1], changed, exclude[:1]).item() == pytest.approx(
        loss(first[:1], second[:1], negatives[[0, 1, 3, 4, 5]]).item(), rel=1e-5
    )


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_gradient_is_that_of_finite_differences(loss):
    first, second = vectors(3, 0), vectors(3, 1)
    direction = vectors(3, 5)
    leaf = first.clone().requires_grad_()
    if isinstance(loss, DCLW):
        pytest.skip("its weights have no gradient")
    loss(leaf, second).backward()
    step = 1e-2
    slope = (loss(first + step * direction, second) - loss(first - step * direction, second)) / (2 * step)
    assert (leaf.grad * direction).sum().item() == pytest.approx(slope.item(), rel=1e-2, abs=1e-3)


def test_equals_lightly():
    lightly = pytest.importorskip("lightly.loss")
    first, second = vectors(4, 0), vectors(4, 1)
    assert NTXent(0.2)(first, second).item() == pytest.approx(lightly.NTXentLoss(0.2)(first, second).item(), rel=1e-5)


def test_refuses_bad_numbers_and_shapes():
    with pytest.raises(ValueError, match="temperature must be a number above 0, got 0 "):
        NTXent(0)
    with pytest.raises(ValueError, match=r"first \(4, 5\) and second \(3, 5\) must have the same shape"):
        NTXent()(vectors(4, 0), vectors(3, 1))
    with pytest.raises(ValueError, match=r"negatives \(6, 4\) and embeddings \(4, 5\) differ in width"):
        NTXent()(vectors(4, 0), vectors(4, 1), vectors(6, 2)[:, :4])
    with pytest.raises(ValueError, match="exclude= says which of the negatives= are left out"):
        NTXent()(vectors(4, 0), vectors(4, 1), exclude=torch.zeros(4, 6, dtype=torch.bool))
