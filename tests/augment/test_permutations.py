from __future__ import annotations

from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from superself.augment.permutations import STORED, choose_far_apart, permutation_set


def distance(one, other):
    return sum(a != b for a, b in zip(one, other, strict=True))


def slowly_chosen(tiles, count):
    """The same by looking at every pair again for every choice."""
    left = list(permutations(range(tiles)))
    chosen = [left.pop(0)]
    while len(chosen) < count:
        far = [(min(d := [distance(c, p) for p in chosen]), sum(d)) for c in left]
        chosen.append(left.pop(far.index(max(far))))
    return chosen


@pytest.mark.parametrize(("tiles", "count"), [(3, 4), (4, 9), (5, 20)])
def test_next_permutation_is_the_farthest_from_those_chosen(tiles, count):
    assert [tuple(row) for row in choose_far_apart(tiles, count)] == slowly_chosen(tiles, count)


def test_permutations_of_four_tiles_worked_by_hand():
    """Four permutations of four tiles can differ in all places: a Latin square."""
    assert permutation_set(4, 4).tolist() == [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]


@pytest.mark.parametrize("count", [24, 100, None])
def test_all_permutations_are_returned_when_there_are_fewer(count):
    assert permutation_set(4, count).tolist() == [list(p) for p in permutations(range(4))]


def test_thousand_of_nine_tiles_are_different_permutations_far_apart():
    found = permutation_set(9, 1000)
    assert found.shape == (1000, 9) and found.dtype == torch.int64
    assert torch.equal(found.sort(1).values, torch.arange(9).expand(1000, 9))
    assert len({tuple(row) for row in found.tolist()}) == 1000
    distances = (found[:, None] != found).sum(2)[tuple(np.triu_indices(1000, 1))]
    assert distances.min() == 5 and distances.float().mean().item() == pytest.approx(8.008, abs=5e-4)
    assert min(distance(a, b) for a, b in combinations(found[:100].tolist(), 2)) == 6


def test_stored_permutations_are_those_of_the_search():
    assert torch.equal(permutation_set(9, 12), torch.from_numpy(choose_far_apart(9, 12)))


def test_smaller_sets_begin_the_larger_ones():
    assert torch.equal(permutation_set(9, 50), permutation_set(9, 1000)[:50])
    assert torch.equal(permutation_set(4, 5), permutation_set(4, 9)[:5])


def test_file_of_permutations_is_packed_with_the_package():
    packed = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'"superself.augment" = ["{STORED}"]' in packed


@pytest.mark.parametrize(
    ("tiles", "count", "message"),
    [(16, 10, "tiles=16 is out of range; pass 1 to 9"), (4, 0, "count=0 must be at least 1")],
)
def test_impossible_counts_are_refused(tiles, count, message):
    with pytest.raises(ValueError, match=message):
        permutation_set(tiles, count)
