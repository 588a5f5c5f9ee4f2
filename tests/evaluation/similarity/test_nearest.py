import csv

import pytest
import torch
from torch.nn import functional as F

from superself.evaluation import Features, neighbours
from superself.evaluation.similarity import search

FEW = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0], [4.0, 3.0]])  # cosines: 0, 0.6, 0.8; 0.96 of the last two


def points(count=90, width=5, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + 1.0


def slow_neighbours(known, asked, k, own):
    """Cosine by cosine, and a sort."""
    found = []
    for place, query in enumerate(asked):
        cosines = [(F.cosine_similarity(query, row, dim=0).item(), i) for i, row in enumerate(known)]
        found.append(sorted((pair for pair in cosines if not (own and pair[1] == place)), reverse=True)[:k])
    return found


def assert_equal_to(found, slow):
    torch.testing.assert_close(found.cosines, torch.tensor([[cosine for cosine, _ in line] for line in slow]))
    assert found.indices.tolist() == [[index for _, index in line] for line in slow]


def test_neighbours_by_hand():
    found = neighbours(FEW, k=2)
    assert found.indices.tolist() == [[3, 2], [2, 3], [3, 1], [2, 0]]
    torch.testing.assert_close(found.cosines, torch.tensor([[0.8, 0.6], [0.8, 0.6], [0.96, 0.8], [0.96, 0.8]]))


def test_neighbours_equal_a_double_loop():
    assert_equal_to(neighbours(points(), k=7), slow_neighbours(points(), points(), 7, own=True))


def test_other_images_may_be_asked():
    asked = points(6, seed=1)
    assert_equal_to(neighbours(points(), 4, queries=asked), slow_neighbours(points(), asked, 4, own=False))


def test_some_rows_may_be_asked():
    every, some = neighbours(points(), 3), neighbours(points(), 3, queries=[40, 2])
    assert some.queries.tolist() == [40, 2]
    assert torch.equal(some.indices, every.indices[[40, 2]])


@pytest.mark.parametrize("rows, similarities", [(1, 1), (7, 70), (16, 400), (1000, 2**20)])
def test_blocks_change_nothing(monkeypatch, rows, similarities):
    whole = neighbours(points(), k=7)
    monkeypatch.setattr(search, "QUERIES_AT_A_TIME", rows)
    monkeypatch.setattr(search, "SIMILARITIES_AT_A_TIME", similarities)
    parts = neighbours(points(), k=7)
    torch.testing.assert_close(parts.cosines, whole.cosines)
    assert torch.equal(parts.indices, whole.indices)


def test_no_block_is_larger_than_allowed(monkeypatch):
    sizes = []
    monkeypatch.setattr(search, "QUERIES_AT_A_TIME", 8)
    monkeypatch.setattr(search, "SIMILARITIES_AT_A_TIME", 160)
    topk = torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, "topk", lambda self, k: sizes.append(self.numel()) or topk(self, k))
    neighbours(points(), k=3)
    assert max(sizes) == 160


def test_a_copy_is_a_neighbour_and_the_image_itself_is_not():
    known = points()
    known[50] = 3 * known[4]
    found = neighbours(known, k=1, queries=[4, 50])
    assert found.indices.tolist() == [[50], [4]] and found.cosines.min() > 0.9999 and found.cosines.max() <= 1


def test_unreadable_rows_are_left_out_and_indices_stay_those_of_the_data_set():
    known = points(20)
    known[[0, 7]] = torch.nan
    paths = [f"{i}.png" for i in range(20)]
    found = neighbours(Features(known, paths=paths), k=17)
    assert found.queries.tolist() == [i for i in range(20) if i not in (0, 7)] and len(found) == 18
    columns = found.queries.tolist(), found.indices.tolist(), found.query_paths, found.paths
    for query, line, path, names in zip(*columns, strict=True):
        assert sorted([query, *line]) == found.queries.tolist()
        assert path == paths[query] and names == [paths[i] for i in line]
    with pytest.raises(ValueError, match="row 7, which is NaN"):
        neighbours(known, k=2, queries=[3, 7])


def test_the_result_is_a_table_and_a_file(tmp_path):
    features = Features(FEW, paths=["a.png", "b.png", "c.png", "d, or e.png"])
    found = neighbours(features, k=2)
    text = str(found).splitlines()
    assert text[0] == "2 nearest neighbours (cosine) of 4 images" and len(text) == 10
    assert text[2].split(maxsplit=5) == ["0", "1", "0.8", "3", "a.png", "d, or e.png"]
    with open(found.to_csv(tmp_path / "new" / "found.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and rows[0]["path"] == "d, or e.png" and float(rows[0]["cosine"]) == pytest.approx(0.8)


def test_long_tables_are_shortened():
    assert str(neighbours(points(), k=2)).endswith("... (all of them: to_csv)")


@pytest.mark.parametrize("queries", [None, [3, 4, 80], points(5, seed=1)], ids=["all", "rows", "others"])
def test_faiss_finds_the_same(monkeypatch, queries):
    faiss = pytest.importorskip("faiss")
    known = points()
    known[20:26] = known[3]  # more copies than neighbours
    plain = neighbours(known, 4, queries)
    calls, knn = [], faiss.knn
    monkeypatch.setattr(faiss, "knn", lambda *args, **kwargs: calls.append(args) or knn(*args, **kwargs))
    monkeypatch.setattr(search, "FEWEST_FOR_FAISS", 1)
    fast = neighbours(known, 4, queries)
    torch.testing.assert_close(fast.cosines, plain.cosines)
    different = (fast.indices != plain.indices) & ~torch.isin(fast.indices, torch.tensor([3, *range(20, 26)]))
    assert len(calls) == 1 and not different.any()
    if queries is None or isinstance(queries, list):
        assert not (fast.indices == fast.queries[:, None]).any()


def test_faiss_is_optional(monkeypatch):
    monkeypatch.setattr(search, "FEWEST_FOR_FAISS", 1)
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    assert neighbours(FEW, k=2).indices.tolist() == [[3, 2], [2, 3], [3, 1], [2, 0]]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((points(), 90), "k must be an integer of at most 89, got 90"),
        ((points(), 0), "k must be an integer of at least 1"),
        ((points()[0], 1), r"shape \(5,\); pass one row per image"),
        ((points() * torch.nan, 1), "90 rows and none that is not NaN"),
        ((points() / 0, 1), "not finite in 90 of 90 rows"),
        ((points(), 2, [90]), "row 90, and there are 90"),
        ((points(), 2, [0.5]), "must hold row numbers"),
        ((points(), 2, points(3, 4)), "queries has 4 features per image and features 5"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        neighbours(*arguments)


def test_a_folder_is_not_features():
    with pytest.raises(TypeError, match="features is a str; pass what features"):
        neighbours("my_images")


@pytest.mark.thorough
def test_two_hundred_thousand_images_need_little_memory():
    import resource

    known = torch.randn(200_000, 64, generator=torch.Generator().manual_seed(0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = neighbours(known, k=10)
    assert found.indices.shape == (200_000, 10)
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 * 1024
    )  # KiB; a whole row of blocks is 160 GB
