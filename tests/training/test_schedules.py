import pytest
import torch
from torch import nn

from superself.training import constant, cosine, warmup_cosine


def rates(schedule, steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = schedule(optimizer)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_worked_by_hand():
    assert cosine(1.0, 0.0, 0.0) == 1.0
    assert cosine(1.0, 0.0, 0.5) == pytest.approx(0.5)
    assert cosine(0.996, 1.0, 1.0) == 1.0
    assert cosine(1.0, 0.2, 7.0) == pytest.approx(0.2)


def test_warm_up_rises_evenly_and_the_cosine_falls_to_its_end():
    seen = rates(lambda optimizer: warmup_cosine(0.2, final=0.1)(optimizer, 20), 21)
    assert seen[:4] == pytest.approx([2 / 5, 4 / 5, 6 / 5, 8 / 5])
    assert seen[4] == 2.0 and all(a > b for a, b in zip(seen[4:], seen[5:], strict=False))
    assert seen[20] == pytest.approx(0.2)


def test_constant_stays():
    assert rates(constant, 3) == [2.0, 2.0, 2.0]


def test_warm_up_of_the_whole_run_is_refused():
    with pytest.raises(ValueError, match=r"warmup=1 is a share of all steps"):
        warmup_cosine(1)
