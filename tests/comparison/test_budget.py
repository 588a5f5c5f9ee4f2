"""Budgets: how they are written, and the plan that fills the time."""

import pytest
import torch

from superself.comparison import Plan, plan, random_part
from superself.comparison.budget import Budget, parse_budget
from superself.data import open_images

from cases import tiny_images


@pytest.mark.parametrize(
    "written, expected",
    [
        (2, Budget(seconds=120.0)),
        (0.5, Budget(seconds=30.0)),
        ("90s", Budget(seconds=90.0)),
        ("2min", Budget(seconds=120.0)),
        ("5 epochs", Budget(epochs=5)),
        ("1epoch", Budget(epochs=1)),
    ],
)
def test_a_budget_is_a_time_or_a_number_of_epochs(written, expected):
    assert parse_budget(written) == expected


@pytest.mark.parametrize("written", ["soon", "0 epochs", None, True, 0, -1, "2 days"])
def test_anything_else_is_answered_with_what_can_be_written(written):
    with pytest.raises(ValueError, match="budget(=| must be a number above 0)"):
        parse_budget(written)


@pytest.mark.parametrize(
    "seconds, expected",
    [
        (100, Plan(9, 1000)),  # an epoch of 10 steps of 1 s and another second: 9.09
        (105, Plan(10, 900)),  # 9.5 epochs: ten of 9 steps
        (16, Plan(2, 700)),
        (8, Plan(1, 700)),
        (0.1, Plan(1, 100)),
    ],
)
def test_epochs_fill_the_time(seconds, expected):
    assert plan(seconds, step_seconds=1.0, epoch_seconds=1.0, images=1000, batch_size=100) == expected


def test_a_plan_takes_at_most_a_tenth_longer_than_the_time():
    for images, batch, step, epoch in ((3600, 128, 0.7, 0.5), (50000, 256, 0.01, 1.0), (130, 128, 5.0, 0.0)):
        for seconds in (10, 60, 300):
            planned = plan(seconds, step, epoch, images, batch)
            taken = planned.epochs * (-(-planned.images // batch) * step + epoch)
            assert taken <= 1.1 * seconds or planned.epochs == 1
            assert taken >= 0.6 * seconds or planned.images == batch


def test_a_part_of_the_images_is_fixed_and_keeps_its_labels():
    images = open_images([(image, i % 3) for i, image in enumerate(tiny_images(12))]).load()
    part, again = random_part(images, 5), random_part(images, 5)
    assert len(part) == 5 and torch.equal(part.batch(range(5)).images, again.batch(range(5)).images)
    for image, label in part:
        position = next(i for i in range(12) if torch.equal(images[i][0], image))
        assert label == position % 3
    assert random_part(images, 12) is images
