import pytest
import torch
from torch.nn import functional as F

from superself.evaluation import Features, duplicate_threshold, duplicates
from superself.evaluation.similarity import groups


def points(count=120, width=16, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + 0.5


def with_copies():
    """Rows 3, 50, 90 show nearly the same, and rows 10 and 11 even more so."""
    known, noise = points(), torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    known[50], known[90] = known[3] + 0.05 * noise[0], known[3] + 0.05 * noise[1]
    known[11] = known[10] + 0.01 * noise[2]
    return known


def slow_groups(known, threshold):
    """Each pair, and every group painted with the smallest number in it until nothing changes."""
    cosines = F.cosine_similarity(known[:, None], known[None], dim=2).fill_diagonal_(-2)
    labels = list(range(len(known)))
    changed = True
    while changed:
        changed = False
        for i, j in (cosines >= threshold).nonzero().tolist():
            smallest = min(labels[i], labels[j])
            changed = changed or labels[i] != smallest or labels[j] != smallest
            labels[i] = labels[j] = smallest
    return sorted(
        found for label in set(labels) if len(found := [i for i, own in enumerate(labels) if own == label]) > 1
    )


def as_lists(found):
    return sorted(group.tolist() for group in found.groups)


def test_copies_are_found_and_the_most_similar_come_first():
    found = duplicates(with_copies())
    assert [group.tolist() for group in found.groups] == [[10, 11], [3, 50, 90]]
    assert found.redundant.tolist() == [11, 50, 90]
    assert 0.8 < found.threshold < 1 and found.images == 120


@pytest.mark.parametrize("threshold", [0.5, 0.65, 0.75, 0.9])
def test_groups_equal_those_of_all_pairs(threshold):
    assert as_lists(duplicates(points(), threshold)) == slow_groups(points(), threshold)


def test_cosines_are_those_to_the_most_similar_image():
    known = with_copies()
    cosines = F.cosine_similarity(known[:, None], known[None], dim=2).fill_diagonal_(-2).amax(dim=1)
    found = duplicates(known, 0.7)
    assert len(found) > 2
    for group, own in zip(found.groups, found.cosines, strict=True):
        torch.testing.assert_close(own, cosines[group])


@pytest.mark.parametrize("block, links", [(1, 0), (7, 3), (50, 10**6)])
def test_blocks_change_nothing(monkeypatch, block, links):
    whole = duplicates(points(), 0.65)
    monkeypatch.setattr(groups, "BLOCK", block)
    monkeypatch.setattr(groups, "MOST_LINKS", links)
    parts = duplicates(points(), 0.65)
    assert as_lists(parts) == as_lists(whole)


def test_few_pairs_are_kept_where_all_images_are_similar(monkeypatch):
    sizes = []
    monkeypatch.setattr(groups, "BLOCK", 20)
    monkeypatch.setattr(groups, "MOST_LINKS", 0)
    join = groups._join
    monkeypatch.setattr(
        groups, "_join", lambda labels, links: sizes.append(sum(map(len, links))) or join(labels, links)
    )
    found = duplicates(torch.ones(400, 4), 0.9)
    assert as_lists(found) == [list(range(400))]
    assert max(sizes) <= 400 + 20 * 20  # of 79,800
    assert sum(sizes) < 10_000  # what is connected already is not linked again
    assert "400 images are in one group" in str(found)


def test_equal_features_are_duplicates_at_any_threshold():
    known = points()
    known[7] = 5 * known[2]
    assert as_lists(duplicates(known, 1.0)) == [[2, 7]]


def test_images_without_features_are_not_duplicates():
    known = points()
    known[[4, 8]] = 0
    assert as_lists(duplicates(known, 0.99)) == []


def test_a_common_mean_moves_the_automatic_threshold():
    """In an untrained network all features point in nearly the same direction, and 0.98 would join all images."""
    known = with_copies()
    shifted = known + 30
    assert len(max(duplicates(shifted, 0.98).groups, key=len)) == 120
    assert as_lists(duplicates(shifted)) == [[3, 50, 90], [10, 11]]
    assert duplicate_threshold(shifted) > 0.999 > duplicate_threshold(known)


def test_the_automatic_threshold_by_hand():
    known = torch.eye(11)  # each is sqrt(2) away from the ten others
    assert duplicate_threshold(known) == pytest.approx(1 - (0.4**2 * 2) / 2)


def test_many_pairs_of_copies_do_not_hide_each_other():
    known = points().repeat(2, 1)
    assert as_lists(duplicates(known)) == [[i, i + 120] for i in range(120)]


def test_collapsed_features_have_no_automatic_threshold():
    with pytest.raises(ValueError, match="they have collapsed, or most images are copies; pass threshold="):
        duplicates(torch.ones(50, 4) + 1e-5 * torch.rand(50, 4))


def test_unreadable_rows_and_paths():
    known = with_copies()
    known[[0, 30]] = torch.nan
    found = duplicates(Features(known, paths=[f"{i}.png" for i in range(120)]))
    assert found.paths == [["10.png", "11.png"], ["3.png", "50.png", "90.png"]] and found.images == 118
    lines = str(found).splitlines()
    assert lines[0].startswith("5 of 118 images in 2 groups of near-duplicates (cosine from 0.")
    assert lines[1].split() == ["group", "cosine", "index", "path"] and lines[2].split()[2:] == ["10", "10.png"]


def test_nothing_similar():
    found = duplicates(torch.eye(8))
    assert len(found) == 0 and found.redundant.tolist() == [] and str(found).startswith("0 of 8 images in 0 groups")


@pytest.mark.parametrize("threshold", [0.0, 1.5])
def test_thresholds_are_checked(threshold):
    with pytest.raises(ValueError, match="threshold must be a number in"):
        duplicates(points(), threshold)


def test_two_images_have_no_usual_distance():
    with pytest.raises(ValueError, match="cannot be measured on 2 images; pass threshold="):
        duplicates(points(2))
    assert as_lists(duplicates(torch.ones(2, 3), 0.9)) == [[0, 1]]


@pytest.mark.thorough
def test_two_hundred_thousand_images_need_little_memory():
    import resource

    known = torch.randn(200_000, 64, generator=torch.Generator().manual_seed(0))
    known[150_000:] = known[:50_000] + 1e-3
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = duplicates(known)
    assert len(found) == 50_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 * 1024  # KiB
