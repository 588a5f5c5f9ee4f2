import math

import pytest
import torch

from superself.evaluation.significance import paired_difference


def right(*counts, total):
    """A vector that is 1 from ``start`` to ``stop`` for each pair."""
    found = torch.zeros(total)
    for start, stop in counts:
        found[start:stop] = 1
    return found


def test_the_difference_of_two_runs_is_that_of_the_discordant_images():
    # 100 images: 60 right with both, 20 with the first alone, 8 with the second alone, 12 with neither
    first, second = right((0, 80), total=100), right((0, 60), (80, 88), total=100)
    found = paired_difference(first, second)
    assert found.value == pytest.approx(0.12) and found.images == 100
    # sqrt(20 + 8 + 1 - 12^2 / 102) / 102 = sqrt(27.588235) / 102
    assert found.error == pytest.approx(0.0514947, abs=1e-6)
    assert found.margin == pytest.approx(1.9837 * 0.0514947, abs=1e-5)  # Student's t with 101 degrees of freedom
    assert found.sign == 1 and paired_difference(second, first).sign == -1
    assert str(found) == "+12.0 ± 10.2 points"


def test_a_tiny_difference_in_favour_is_no_improvement():
    first, second = right((0, 51), (60, 70), total=100), right((0, 50), (70, 80), total=100)
    found = paired_difference(first, second)  # 11 against 10 images
    assert found.value == pytest.approx(0.01) and found.sign == 0


def test_few_discordant_images_all_on_one_side_are_not_proof():
    # An exact test of 4 heads in 4 throws has p = 0.125.
    assert paired_difference(right((0, 54), total=100), right((0, 50), total=100)).sign == 0
    assert paired_difference(right((0, 60), total=100), right((0, 50), total=100)).sign == 1


def test_equal_classifiers_do_not_differ_and_the_interval_is_not_empty():
    found = paired_difference(right((0, 5), total=31), right((0, 5), total=31))
    assert found.value == 0 and found.sign == 0
    assert found.error == pytest.approx(1 / 33)


def test_the_spread_over_runs_widens_the_interval():
    base = right((0, 500), total=1000)
    runs = torch.stack([right((0, 520), total=1000), right((0, 580), total=1000), right((0, 550), total=1000)])
    one, three = paired_difference(runs[2], base), paired_difference(runs, base)
    assert one.value == pytest.approx(0.05) and three.value == pytest.approx(0.05)
    # accuracies 0.52, 0.58, 0.55: variance 0.0009, by 3 runs 0.0003; of the images: d is 1 for 20, 2/3 for 30, 1/3 for 30
    images = (20 + 30 * 4 / 9 + 30 / 9 + 1 - 50**2 / 1002) / 1002**2
    assert three.error == pytest.approx(math.sqrt(images + 0.0003))
    freedom = (images + 0.0003) ** 2 / (images**2 / 1001 + 0.0003**2 / 2)
    assert 2 < freedom < 3 and three.margin > 3.18 * three.error  # t with 3 degrees of freedom: 3.18
    assert one.sign == 1 and three.sign == 0


def test_images_that_one_of_them_could_not_read_are_left_out():
    first, second = right((0, 80), total=100), right((0, 60), total=100)
    first[:10] = math.nan
    found = paired_difference(first, second)
    assert found.images == 90 and found.value == pytest.approx(20 / 90)
    with pytest.raises(ValueError, match="no image was measured with both"):
        paired_difference(torch.full((3,), math.nan), torch.ones(3))
    with pytest.raises(ValueError, match="measured on 3 and 4 images"):
        paired_difference(torch.ones(3), torch.ones(4))
