import math

import pytest
import torch

from superself.losses import DCL, DCLW, NTXent


def vectors(n, seed):
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


def cosine(a, b):
    return torch.cosine_similarity(a, b, dim=0).item()


def slow_dcl(first, second, t, weights=None):
    """The positive is in the numerator only: negatives are both views of the other images."""
    count, total = len(first), 0.0
    everyone = [*first, *second]
    for i in range(2 * count):
        similar = cosine(everyone[i], everyone[(i + count) % (2 * count)]) / t
        others = sum(math.exp(cosine(everyone[i], everyone[k]) / t) for k in range(2 * count) if k % count != i % count)
        total += -(1 if weights is None else weights[i % count]) * similar + math.log(others)
    return total / (2 * count)


def test_dcl_equals_the_loop_without_the_positive_in_the_denominator():
    first, second = vectors(4, 0), vectors(4, 1)
    assert DCL(0.2)(first, second).item() == pytest.approx(slow_dcl(first, second, 0.2), rel=1e-5)


def test_dclw_equals_the_loop_with_weights_of_mean_one():
    first, second = vectors(4, 0), vectors(4, 1)
    alike = [math.exp(cosine(a, b) / 0.3) for a, b in zip(first, second, strict=True)]
    weights = [2 - value / (sum(alike) / 4) for value in alike]
    assert sum(weights) / 4 == pytest.approx(1) and max(weights) > 1.2
    slow = slow_dcl(first, second, 0.2, weights)
    assert DCLW(0.2, sigma=0.3)(first, second).item() == pytest.approx(slow, rel=1e-5)


def test_number_worked_by_hand():
    """Two images at a right angle, each with equal views, t = 1: -1 + ln(1 + 1) = -0.30685282; it is below 0."""
    views = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    assert DCL(1.0)(views, views).item() == pytest.approx(-0.30685282)
    assert DCLW(1.0)(views, views).item() == pytest.approx(-0.30685282)  # equal similarities: weights of 1


def test_the_pull_of_the_positive_does_not_fade_when_the_image_is_easy():
    """With one easy negative SimCLR's gradient vanishes, which decoupling avoids."""
    views = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    turned = torch.tensor([[0.8, 0.6], [-0.8, 0.6]])
    norms = []
    for loss in (DCL(0.1), NTXent(0.1)):
        leaf = views.clone().requires_grad_()
        loss(leaf, turned).backward()
        norms.append(leaf.grad.norm().item())
    assert norms[0] > 1000 * norms[1]


def test_the_weights_get_no_gradient():
    first, second = vectors(4, 0).requires_grad_(), vectors(4, 1)
    loss = DCLW(0.2)
    assert not loss.weights((first * second).sum(1)).requires_grad
    loss(first, second).backward()
    fixed = first.detach().clone().requires_grad_()
    cosines = torch.cosine_similarity(fixed.detach(), second)
    weights = 2 - 4 * (cosines / 0.5).softmax(0)
    extra = ((1 - weights) * torch.cosine_similarity(fixed, second) / 0.2).mean()
    (DCL(0.2)(fixed, second) + extra).backward()
    assert torch.allclose(first.grad, fixed.grad, atol=1e-6)


def test_equal_lightly():
    lightly = pytest.importorskip("lightly.loss")
    first, second = vectors(4, 0), vectors(4, 1)
    assert DCL(0.2)(first, second).item() == pytest.approx(lightly.DCLLoss(0.2)(first, second).item(), rel=1e-5)
    theirs = lightly.DCLWLoss(0.2, sigma=0.3)(
        torch.nn.functional.normalize(first, dim=1), torch.nn.functional.normalize(second, dim=1)
    )
    assert DCLW(0.2, sigma=0.3)(first, second).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_sigma_must_be_positive():
    with pytest.raises(ValueError, match=r"sigma must be a number above 0, got 0 \(it divides similarities"):
        DCLW(sigma=0)
