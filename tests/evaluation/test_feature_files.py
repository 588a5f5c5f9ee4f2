import math

import numpy as np
import pytest
import torch

from superself.evaluation import Features, feature_files
from superself.evaluation.feature_files import read_features, write_features

ENDINGS = [".npz", ".parquet", ".csv"]


@pytest.fixture(params=ENDINGS)
def ending(request):
    if request.param == ".parquet":
        pytest.importorskip("pyarrow")
    return request.param


def some(labels=True, paths=True, rows=7):
    values = torch.randn(rows, 5, generator=torch.Generator().manual_seed(0)) / 3
    names = [f"folder, one/bild ä {i}.png" for i in range(rows)] if paths else None
    return Features(values, torch.arange(rows) % 3 if labels else None, names)


def assert_same(found, expected):
    assert found.features.dtype == torch.float32 and torch.equal(found.features, expected.features)
    assert found.paths == expected.paths
    assert (found.labels is None) == (expected.labels is None)
    if found.labels is not None:
        assert found.labels.dtype == expected.labels.dtype and torch.equal(found.labels, expected.labels)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("paths", [True, False])
def test_what_is_written_is_read_back_bit_for_bit(tmp_path, ending, labels, paths):
    path = write_features(some(labels, paths), tmp_path / "new" / f"x{ending}")
    assert_same(read_features(path), some(labels, paths))
    assert [file.name for file in path.parent.iterdir()] == [f"x{ending}"]


def test_many_rows_are_written_in_parts(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(feature_files, "ROWS_AT_A_TIME", 3)
    assert_same(read_features(write_features(some(), tmp_path / f"x{ending}")), some())


def test_unreadable_images_and_several_labels(tmp_path, ending):
    labels = torch.tensor([[0.5, 1.0], [math.nan, math.nan], [0.0, 1.0]])
    given = Features(torch.tensor([[1.0, 2.0], [math.nan, math.nan], [3.0, 1e-30]]), labels, ["a", "b", "c"])
    found = read_features(write_features(given, tmp_path / f"x{ending}"))
    torch.testing.assert_close(found.features, given.features, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(found.labels, labels, equal_nan=True)


def test_labels_keep_their_type(tmp_path, ending):
    """Whole floating-point numbers are several labels per image, where NaN is unknown; integers are classes."""
    for labels in (torch.ones(2, 3), torch.tensor([0.0, 1.0]), torch.tensor([-1, 4]), torch.tensor([[1, 2], [3, 4]])):
        given = Features(torch.ones(2, 2), labels)
        assert_same(read_features(write_features(given, tmp_path / f"x{ending}")), given)


def test_half_precision_is_smaller_and_near(tmp_path, ending):
    found = read_features(write_features(some(), tmp_path / f"x{ending}", dtype="float16"))
    assert torch.equal(found.features.half(), some().features.half())
    large = Features(torch.randn(500, 64))
    sizes = [
        write_features(large, tmp_path / f"{dtype}{ending}", dtype).stat().st_size for dtype in ("float16", "float32")
    ]
    assert sizes[0] < 0.75 * sizes[1]


def test_half_precision_refuses_what_it_cannot_hold(tmp_path):
    with pytest.raises(
        OverflowError, match='the largest feature is 7e.04, which float16 cannot hold; pass dtype="float32"'
    ):
        write_features(Features(torch.tensor([[70000.0]])), tmp_path / "x.npz", "float16")
    assert not list(tmp_path.iterdir())


def test_numpy_reads_npz_without_pickle(tmp_path):
    with np.load(write_features(some(), tmp_path / "x.npz"), allow_pickle=False) as arrays:
        assert arrays["features"].dtype == np.float32 and arrays["labels"].dtype == np.int64
        assert arrays["paths"][3] == "folder, one/bild ä 3.png"


def test_pandas_reads_the_tables(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    for read, ending in ((pandas.read_csv, ".csv"), (pandas.read_parquet, ".parquet")):
        frame = read(write_features(some(), tmp_path / f"x{ending}"))
        assert list(frame.columns) == ["path", "label", "f0", "f1", "f2", "f3", "f4"]
        assert frame["path"][3] == "folder, one/bild ä 3.png" and frame["label"].tolist() == some().labels.tolist()
        assert np.allclose(frame[["f0", "f1", "f2", "f3", "f4"]], some().features)


def test_names_that_are_not_utf8_are_kept(tmp_path):
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    given = Features(torch.ones(1, 2), paths=[name])
    for ending in (".npz", ".csv"):
        assert read_features(write_features(given, tmp_path / f"x{ending}")).paths == [name]


def test_an_older_file_survives_an_error(tmp_path, monkeypatch):
    path = write_features(some(), tmp_path / "x.npz")
    monkeypatch.setattr(np, "savez", lambda file, **arrays: file.write(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_features(some(rows=2), path)
    assert_same(read_features(path), some())
    assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]


def test_wrong_paths_are_explained(tmp_path):
    with pytest.raises(ValueError, match=r"by its ending; pass a path that ends in .npz, .parquet or .csv"):
        write_features(some(), tmp_path / "x.txt")
    (tmp_path / "f.npz").mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        write_features(some(), tmp_path / "f.npz")
    with pytest.raises(FileNotFoundError, match="there is no file .*missing.csv"):
        read_features(tmp_path / "missing.csv")
    with pytest.raises(ValueError, match="dtype='int8' is unknown"):
        write_features(some(), tmp_path / "x.npz", "int8")


def test_files_without_features_are_explained(tmp_path):
    (tmp_path / "x.csv").write_text("path,size\na,3\n")
    np.savez(tmp_path / "x.npz", other=np.ones(3))
    for name in ("x.csv", "x.npz"):
        with pytest.raises(ValueError, match="holds no features; it needs an array features"):
            read_features(tmp_path / name)


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'pip install "superself\[tables\]", or write .npz or .csv'):
        write_features(some(), tmp_path / "x.parquet")


def test_damaged_files_are_named(tmp_path, ending):
    path = tmp_path / f"x{ending}"
    path.write_bytes(b"path,f0,f1\na,1\n" if ending == ".csv" else b"PK\x03\x04 torn")
    with pytest.raises(ValueError, match=r"x\.\w+ cannot be read"):
        read_features(path)
