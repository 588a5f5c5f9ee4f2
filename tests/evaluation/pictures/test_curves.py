import csv
import math

import pytest
from PIL import Image

from superself.evaluation import show_curves
from superself.evaluation.pictures import curves

ROWS = [
    {"epoch": 0, "loss": "", "knn": 0.3},
    {"epoch": 1, "loss": 4.0, "chance_loss": 5.0, "knn": 0.4, "seconds": 3.0, "embedding_std": 0.1, "note": "text"},
    {"epoch": 2, "loss": 3.0, "chance_loss": 5.0, "knn": math.nan, "seconds": 3.0, "embedding_std": 0.2, "note": ""},
]


@pytest.fixture
def figures(monkeypatch):
    """The figures that would be written."""
    found = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: found.append(figure) or path)
    return found


def lines(axes):
    return {
        line.get_label(): list(map(tuple, line.get_xydata()))
        for line in axes.lines
        if len(line.get_xydata()) != 2 or line.get_linestyle() == "-"
    }


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]


def test_the_loss_stands_next_to_its_chance_level_and_metrics_begin_before_training(figures):
    show_curves({"run": ROWS}, "a.png")
    loss, knn = figures[0].axes
    assert titles(figures[0]) == ["loss", "kNN accuracy"]
    assert list(map(tuple, loss.lines[0].get_xydata())) == [(1, 4), (2, 3)]
    assert list(loss.lines[1].get_ydata()) == [5, 5] and "chance level: 5" in [text.get_text() for text in loss.texts]
    assert list(map(tuple, knn.lines[0].get_xydata())) == [(0, 0.3), (1, 0.4)]
    assert "before training" in [text.get_text() for text in knn.texts] and not loss.texts[1:]


def test_losses_of_several_runs_are_divided_by_their_chance_levels(figures):
    other = [{"epoch": 1, "loss": 1.0, "chance_loss": 2.0}]
    show_curves({"a": ROWS, "b": other}, "a.png")
    assert titles(figures[0])[0] == "loss / chance level"
    a, b, level = figures[0].axes[0].lines
    assert list(a.get_ydata()) == [0.8, 0.6] and list(b.get_ydata()) == [0.5] and list(level.get_ydata()) == [1, 1]
    assert [text.get_text() for text in figures[0].legends[0].texts] == ["a", "b"]
    show_curves({"a": ROWS, "b": [{"epoch": 1, "loss": 1.0}]}, "a.png")
    assert titles(figures[1])[0] == "loss" and list(figures[1].axes[0].lines[0].get_ydata()) == [4, 3]


def test_records_are_read_from_their_files(tmp_path, figures):
    for name in ("a/base", "b/base"):
        path = tmp_path / f"{name}.csv"
        path.parent.mkdir()
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["epoch", "loss", "chance_loss", "knn"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(ROWS)
    show_curves(tmp_path / "a" / "base", "a.png")
    assert list(figures[0].axes[0].lines[0].get_ydata()) == [4, 3] and figures[0].get_suptitle() == "base"
    show_curves([f"{tmp_path}/a/base", f"{tmp_path}/b/base"], "a.png")  # equal names: their paths are the captions
    assert [text.get_text() for text in figures[1].legends[0].texts] == [f"{tmp_path}/a/base", f"{tmp_path}/b/base"]
    with pytest.raises(FileNotFoundError, match=r"there is no .*none.csv; pass the name of a run"):
        show_curves(tmp_path / "none", "a.png")


def test_columns_can_be_chosen_and_must_exist(figures):
    show_curves(ROWS, "a.png", metrics=["embedding_std"])
    assert titles(figures[0]) == ["loss", "embedding std"]
    with pytest.raises(ValueError, match="no run has values of 'acc'; pass some of"):
        show_curves(ROWS, "a.png", metrics=["acc"])
    with pytest.raises(ValueError, match="the run has no finished epochs to show"):
        show_curves([], "a.png")
    with pytest.raises(ValueError, match="neither a loss nor metrics"):
        show_curves([{"epoch": 1, "seconds": 2.0}], "a.png")


def test_a_png_is_written_without_a_display(tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    path = show_curves(ROWS, tmp_path / "new" / "a.png")
    with Image.open(path) as picture:
        assert picture.width == 960 and picture.getpixel((0, 0))[:3] == (255, 255, 255)
