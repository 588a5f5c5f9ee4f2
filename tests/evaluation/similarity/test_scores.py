import pytest
import torch
from torch.nn import functional as F

from superself.evaluation import Features, outliers
from superself.evaluation.similarity import search


def points(count=80, seed=0):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)) + 3.0


def test_scores_equal_those_of_all_pairs():
    distances = torch.cdist(F.normalize(points(), dim=1), F.normalize(points(), dim=1)).fill_diagonal_(9)
    expected = distances.sort(dim=1).values[:, 4]
    found = outliers(points(), k=5)
    assert sorted(found.indices.tolist()) == list(range(80))
    torch.testing.assert_close(found.scores, expected[found.indices], atol=1e-4, rtol=0)
    assert found.scores.diff().max() <= 0


def test_scores_by_hand():
    """Opposite directions are 2 apart, orthogonal ones sqrt(2)."""
    known = torch.tensor([[1.0, 0.0], [5.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    found = outliers(known, k=2)
    assert dict(zip(found.indices.tolist(), found.scores.tolist(), strict=True)) == pytest.approx(
        {0: 2**0.5, 1: 2**0.5, 2: 2**0.5, 3: 2.0}
    )
    assert found.indices.tolist() == [3, 0, 1, 2]  # in the order of the data set where equal


def test_a_small_group_of_odd_images_is_found():
    known = points()
    known[[5, 6, 7]] = torch.tensor([-4.0, 1, 0, 2, -1, 5]) + 0.01 * points(3, seed=1)
    assert set(outliers(known, k=5).indices[:3].tolist()) == {5, 6, 7}
    assert set(outliers(known, k=1).indices[-3:].tolist()) == {5, 6, 7}  # each has a near neighbour


def test_blocks_change_nothing(monkeypatch):
    whole = outliers(points(), k=5)
    monkeypatch.setattr(search, "QUERIES_AT_A_TIME", 9)
    monkeypatch.setattr(search, "SIMILARITIES_AT_A_TIME", 90)
    parts = outliers(points(), k=5)
    assert torch.equal(parts.indices, whole.indices)
    torch.testing.assert_close(parts.scores, whole.scores)


def test_unreadable_rows_and_paths(tmp_path):
    known = points(30)
    known[4], known[9] = torch.nan, -known[9]
    found = outliers(Features(known, paths=[f"{i}.png" for i in range(30)]), k=3)
    assert len(found) == 29 and 4 not in found.indices and found.paths == [f"{i}.png" for i in found.indices]
    assert str(found).splitlines()[2].split()[2:] == ["9", "9.png"]
    assert "29 images by distance to neighbour 3, the most unusual first (median" in str(found)
    assert len(found.to_csv(tmp_path / "o.csv").read_text().splitlines()) == 30


def test_k_is_checked():
    with pytest.raises(ValueError, match="k must be an integer of at most 19, got 20"):
        outliers(points(20))
