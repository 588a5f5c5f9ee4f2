import math

import pytest
import torch

from superself.losses import IICLoss
from superself.losses.iic import joint_probabilities, mutual_information

from tensors import noise


def slow_loss(first, second, lamb=1.0, eps=2.220446049250313e-16):
    """The definition in loops over pairs and clusters, in float64."""
    p, q = first.double().softmax(1).tolist(), second.double().softmax(1).tolist()
    n, k = len(p), len(p[0])
    joint = [
        [sum(a[c] * b[d] + a[d] * b[c] for a, b in zip(p, q, strict=True)) / (2 * n) for d in range(k)]
        for c in range(k)
    ]
    rows, columns = [sum(row) for row in joint], [sum(row[d] for row in joint) for d in range(k)]
    loss = 0.0
    for c in range(k):
        for d in range(k):
            value, row, column = (max(x, eps) for x in (joint[c][d], rows[c], columns[d]))
            loss -= value * (math.log(value) - lamb * math.log(row) - lamb * math.log(column))
    return loss


@pytest.mark.parametrize("lamb", [1.0, 1.5])
def test_loss_equals_loops_over_pairs_and_clusters_averaged_over_heads(lamb):
    first, second = 3 * noise(2, 7, 4), 3 * noise(2, 7, 4, seed=1)
    slow = sum(slow_loss(a, b, lamb) for a, b in zip(first, second, strict=True)) / 2
    assert IICLoss(lamb)(first, second).item() == pytest.approx(slow, rel=1e-5)


def test_certain_equal_and_balanced_clusters_give_minus_ln_k():
    logits = 200 * torch.eye(4).repeat(3, 1)
    assert IICLoss()(logits, logits).item() == pytest.approx(-math.log(4), abs=1e-5)


def test_by_hand_three_quarters_of_the_pairs_agree():
    first = 200 * torch.eye(2)[[0, 0, 1, 1]]
    second = 200 * torch.eye(2)[[0, 0, 1, 0]]
    # joint 2/4, 1/4 symmetrised to 1/8 and 1/8, 1/4; marginals 5/8 and 3/8
    expected = 0.5 * math.log(0.5 / 0.390625) + 0.25 * math.log(0.125 / 0.234375) + 0.25 * math.log(0.25 / 0.140625)
    assert IICLoss()(first, second).item() == pytest.approx(-expected, abs=1e-6)


def test_independent_or_uniform_assignments_and_a_single_cluster_give_zero():
    first = 200 * torch.eye(2)[[0, 0, 1, 1]]
    second = 200 * torch.eye(2)[[0, 1, 0, 1]]
    one = torch.tensor([200.0, 0, 0]).repeat(5, 1)
    for pair in ((first, second), (torch.zeros(5, 3),) * 2, (one, one)):
        assert IICLoss()(*pair).item() == pytest.approx(0, abs=1e-6)


def test_loss_is_symmetric_and_the_joint_is_a_symmetric_distribution():
    first, second = 3 * noise(2, 7, 4), 3 * noise(2, 7, 4, seed=1)
    assert IICLoss()(first, second).item() == pytest.approx(IICLoss()(second, first).item())
    joint = joint_probabilities(first, second)
    assert torch.allclose(joint, joint.mT) and torch.allclose(joint.sum((1, 2)), torch.ones(2))
    assert mutual_information(joint).shape == (2,)


def test_clusters_that_no_image_has_give_finite_loss_and_gradient():
    logits = torch.tensor([[300.0, 0, -300], [0, 300, -300]], requires_grad=True)
    loss = IICLoss()(logits, logits)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


def test_descending_the_gradient_finds_equal_certain_clusters():
    logits = noise(12, 3).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        IICLoss()(logits, logits).backward()
        optimizer.step()
    assert IICLoss()(logits, logits).item() == pytest.approx(-math.log(3), abs=0.1)
    assert len(logits.argmax(1).unique()) == 3 and logits.softmax(1).amax(1).min() > 0.98


def test_half_precision_is_computed_in_float32():
    first, second = 3 * noise(2, 50, 4), 3 * noise(2, 50, 4, seed=1)
    half = IICLoss()(first.bfloat16(), second.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = IICLoss()(first, second)
    assert half.dtype == mixed.dtype == torch.float32
    exact = IICLoss()(first.bfloat16().float(), second.bfloat16().float())
    assert torch.equal(half, exact) and torch.equal(mixed, IICLoss()(first, second))


def test_logits_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"shapes \(5, 3\) and \(4, 3\); pass two of the same shape"):
        IICLoss()(torch.zeros(5, 3), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="lamb must be"):
        IICLoss(lamb=0)
