import pytest
import torch
from torch.nn import functional as F

from superself.evaluation import Features, coverage

SIZES = (40, 25, 12, 8, 5)


def clusters(noise=0.05):
    """Directions around five axes, in mixed order; and the axis of each."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor(SIZES))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    return F.one_hot(labels, 6) + noise * torch.randn(len(labels), 6, generator=generator), labels


def slow_radii(known, chosen, start=()):
    """After each chosen row, the largest of all distances to the nearest chosen one."""
    known = F.normalize(known, dim=1)
    radii = []
    for count in range(1, len(chosen) + 1):
        rows = [*start, *chosen[:count]]
        radii.append(max(min((row - known[i]).norm().item() for i in rows) for row in known))
    return torch.tensor(radii)


def test_each_cluster_is_represented_and_the_largest_comes_first():
    known, labels = clusters()
    found = coverage(known, 5)
    assert labels[found.indices].tolist() == [0, 1, 2, 3, 4]
    assert found.sizes.tolist() == list(SIZES)


def test_the_image_nearest_to_the_centre_is_chosen():
    known, labels = clusters()
    directions = F.normalize(known, dim=1)
    centred = F.normalize(directions - directions.mean(0), dim=1)
    for index in coverage(known, 5).indices.tolist():
        members = (labels == labels[index]).nonzero().flatten()
        centre = F.normalize(centred[members].mean(0), dim=0)
        assert members[(centred[members] @ centre).argmax()] == index


def test_radii_equal_those_of_all_pairs():
    known, _ = clusters(0.3)
    found = coverage(known, 9)
    torch.testing.assert_close(found.radii, slow_radii(known, found.indices.tolist()), atol=1e-3, rtol=0)
    started = coverage(known, 4, start=[0, 1, 2])
    torch.testing.assert_close(started.radii, slow_radii(known, started.indices.tolist(), (0, 1, 2)), atol=1e-3, rtol=0)


def test_labelled_images_need_no_second_one_of_their_kind():
    known, labels = clusters()
    start = [(labels == kind).nonzero()[0].item() for kind in (0, 3)]
    found = coverage(known, 3, start=start)
    assert labels[found.indices].tolist() == [1, 2, 4]


@pytest.mark.parametrize("n", [1, 7, 60, 88])
def test_images_are_chosen_once_and_never_those_of_the_start(n):
    known, _ = clusters()
    known[20:] = known[:1]  # 71 copies: most clusters stay empty
    found = coverage(known, n, start=[1, 2])
    assert len(set(found.indices.tolist())) == n and not {1, 2} & set(found.indices.tolist())
    assert len(found.sizes) == len(found.radii) == n


def test_all_images_may_be_asked_for():
    known, _ = clusters()
    found = coverage(known, 90)
    assert sorted(found.indices.tolist()) == list(range(90)) and found.radii[-1] < 2e-3


def test_the_same_call_gives_the_same_images():
    known, _ = clusters(0.3)
    state = torch.get_rng_state()
    first, second = coverage(known, 12), coverage(known, 12)
    assert torch.equal(first.indices, second.indices) and torch.equal(torch.get_rng_state(), state)


def test_unreadable_rows_and_paths(tmp_path):
    known, labels = clusters()
    left_out = (labels == 0).nonzero().flatten()
    known[left_out] = torch.nan
    found = coverage(Features(known, paths=[f"{i}.png" for i in range(90)]), 4)
    assert labels[found.indices].tolist() == [1, 2, 3, 4] and found.paths == [f"{i}.png" for i in found.indices]
    assert str(found).startswith("4 images to label first; no image is farther than 0.")
    assert found.to_csv(tmp_path / "first.csv").read_text().splitlines()[0] == "rank,stands_for,radius,index,path"


def test_more_images_than_there_are_is_an_error():
    known, _ = clusters()
    with pytest.raises(ValueError, match="n must be an integer of at most 88, got 89"):
        coverage(known, 89, start=[0, 5])
