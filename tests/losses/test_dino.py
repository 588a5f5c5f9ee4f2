import math

import pytest
import torch
from torch.nn.functional import softmax

from superself.losses import DINOLoss


def outputs(views=4, rows=5, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, generator=generator) for _ in range(views)]


def centred(width=6):
    criterion = DINOLoss(width)
    criterion.center.copy_(torch.linspace(-0.5, 0.5, width))
    return criterion


def test_loss_equals_loops_over_views_images_and_outputs():
    student, teacher, criterion = outputs(4), outputs(2, seed=1), centred()
    terms = []
    for i, large in enumerate(teacher):
        for v, view in enumerate(student):
            if v == i:
                continue
            for g, f in zip(large.double(), view.double(), strict=True):
                sharp = [math.exp((g[k] - criterion.center[k]) / 0.04) for k in range(6)]
                soft = [math.exp(f[k] / 0.1) for k in range(6)]
                terms.append(-sum(sharp[k] / sum(sharp) * math.log(soft[k] / sum(soft)) for k in range(6)))
    assert criterion(student, teacher).item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_loss_by_hand():
    # the teacher is sure of the first of two outputs; the student gives it probability 1/4 in both views
    student = [torch.tensor([[0.0, math.log(3)]])] * 2
    teacher = [torch.tensor([[100.0, 0.0]])] * 2
    assert DINOLoss(2, student_temperature=1.0)(student, teacher).item() == pytest.approx(math.log(4))


def test_loss_and_centre_equal_those_of_lightly():
    lightly = pytest.importorskip("lightly.loss")
    other, criterion = lightly.DINOLoss(6), DINOLoss(6)
    for step in range(3):
        student, teacher = outputs(5, seed=step), outputs(2, seed=10 + step)
        temperature = 0.04 + 0.01 * step
        theirs = other(teacher, student, teacher_temp=temperature)
        assert criterion(student, teacher, temperature).item() == pytest.approx(theirs.item(), rel=1e-4)
        criterion.commit()
        assert torch.allclose(criterion.center, other.center.view(-1), atol=1e-6)


def test_centre_moves_in_commit_only_and_by_a_tenth_of_the_mean_output():
    criterion, teacher = DINOLoss(6), outputs(2, seed=1)
    first = criterion(outputs(), teacher)
    assert torch.equal(criterion.center, torch.zeros(6)) and torch.equal(criterion(outputs(), teacher), first)
    criterion.commit()
    assert torch.allclose(criterion.center, 0.1 * torch.cat(teacher).mean(0))
    kept = criterion.center.clone()
    criterion.commit()  # nothing was computed since
    assert torch.equal(criterion.center, kept)
    assert "center" in criterion.state_dict()


def test_parts_of_a_batch_move_the_centre_as_the_whole_batch():
    whole, parts = DINOLoss(6), DINOLoss(6)
    student, teacher = outputs(), outputs(2, seed=1)
    whole(student, teacher)
    pending = []
    for rows in (slice(0, 2), slice(2, 5)):
        parts([view[rows] for view in student], [view[rows] for view in teacher])
        pending.append(parts.pending)
    parts.remember_parts(pending)
    whole.commit()
    parts.commit()
    assert torch.allclose(whole.center, parts.center)


def test_no_gradient_flows_into_the_teacher_and_every_view_of_the_student_gets_one():
    student = [view.requires_grad_() for view in outputs()]
    teacher = [view.requires_grad_() for view in outputs(2, seed=1)]
    DINOLoss(6)(student, teacher).backward()
    assert all(view.grad is None for view in teacher) and all(view.grad.abs().max() > 0 for view in student)


def test_the_pair_of_the_same_view_is_left_out():
    student, teacher = outputs(2), outputs(2, seed=1)
    cross = -(softmax(teacher[0] / 0.04, 1) * (student[1] / 0.1).log_softmax(1)).sum(1).mean()
    other = -(softmax(teacher[1] / 0.04, 1) * (student[0] / 0.1).log_softmax(1)).sum(1).mean()
    assert DINOLoss(6)(student, teacher).item() == pytest.approx((cross + other).item() / 2)


def test_half_precision_gives_the_loss_of_float32():
    student = [view.bfloat16() for view in outputs()]
    teacher = [view.bfloat16() for view in outputs(2, seed=1)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = DINOLoss(6)(student, teacher)
    assert loss.dtype == torch.float32
    expected = DINOLoss(6)([view.float() for view in student], [view.float() for view in teacher])
    assert loss.item() == pytest.approx(expected.item())


def test_uniform_outputs_of_the_student_give_the_chance_level():
    assert DINOLoss(6)([torch.ones(5, 6)] * 2, outputs(2)).item() == pytest.approx(math.log(6))


def test_the_temperature_of_a_batch_replaces_that_of_the_constructor():
    student, teacher = outputs(), outputs(2, seed=1)
    replaced = DINOLoss(6, teacher_temperature=0.5)(student, teacher, 0.04)
    assert torch.equal(replaced, DINOLoss(6, teacher_temperature=0.04)(student, teacher))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"count": 0}, "count must be .*, got 0"),
        ({"student_temperature": 0}, "student_temperature must be .*, got 0"),
        ({"teacher_temperature": -1}, "teacher_temperature must be .*, got -1"),
        ({"center_momentum": 2}, "center_momentum must be .*, got 2"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error):
    with pytest.raises(ValueError, match=error):
        DINOLoss(**{"count": 6, **arguments})


def test_outputs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="the outputs have width 6 and the centre 7; pass the width"):
        DINOLoss(7)(outputs(), outputs(2))
    with pytest.raises(ValueError, match="student of 2 views and teacher of 3; pass student of at least two views"):
        DINOLoss(6)(outputs(2), outputs(3))
    with pytest.raises(ValueError, match=r"have the shapes \[\(4, 6\), \(5, 6\)\]"):
        DINOLoss(6)(outputs(2), outputs(2, rows=4))
