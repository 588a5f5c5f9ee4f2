"""Throughput: the ratios in its tables, and a complete run in a second."""

import itertools
import timeit

import pytest

from bench import peers, report, throughput, views
from bench.contestants import Setting
from bench.turns import Window


def test_views_are_compared_by_medians():
    speeds = {"superself": [100.0, 300.0, 200.0], "lightly": [50.0, 40.0, 60.0]}
    rows = throughput.view_rows(32, speeds, {"superself": [3.0], "lightly": [1204.4]})
    assert rows == [
        [32, "superself", "200 (100 - 300)", 1.0, "3"],
        [32, "lightly", "50 (40 - 60)", 4.0, "1,204"],
    ]


def test_steps_are_compared_with_ours_and_with_the_limit():
    setting = Setting("byol", "", "resnet18", 10, "cpu")
    windows = {
        "superself": [Window(9, 1.0), Window(9, 1.0, (0.5,))],
        "limit": [Window(10, 1.0)],
        "lightly": [Window(1, 1.0), Window(3, 1.0)],
    }
    rows = throughput.step_rows(setting, dict.fromkeys(windows, "32-true"), windows)
    assert [row[3] for row in rows] == ["90.0 (90.0 - 90.0)", "100 (100 - 100)", "20.0 (10.0 - 30.0)"]
    assert [row[4] for row in rows] == [1.0, pytest.approx(0.9), 4.5]
    assert [row[5] for row in rows] == [pytest.approx(0.9), 1.0, pytest.approx(0.2)]
    assert [row[6] for row in rows] == [pytest.approx(0.5 - 1 / 9), None, None]


def test_memory_without_a_gpu_is_a_dash():
    rows = throughput.memory_rows("resnet18", {"superself": {"process": 1234.5, "workers": 0, "device": None}})
    assert rows == [["resnet18", "superself", "1,234", "0", None]]


def test_too_few_images_name_the_remedy():
    with pytest.raises(ValueError, match="pass --batch-size 1200 or less"):
        throughput.open_tensor(None, 8, 2000)


def test_unknown_parts_are_refused(capsys):
    with pytest.raises(SystemExit):
        throughput.parse(["--parts", "views,speed"])
    assert "there is no part speed" in capsys.readouterr().err


class FewViews(views.PerImage):
    """Eight views made in this process: the workers of a loader would take seconds to start."""

    def __init__(self, images, transform, count, size):
        self.views, self.length, self.data = count, 8, views.PerImageDataset(images, transform, 64)
        self.loader = map(self.data.__getitem__, itertools.cycle(range(8)))

    def rate(self):
        return self.views * 8 / timeit.timeit(lambda: list(itertools.islice(self.loader, 8)), number=1)


@pytest.mark.slow
def test_everything_is_measured_without_lightly(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peers, "has_lightly", lambda: False)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(views, "PerImage", FewViews)
    options = (
        "--minutes 0.01 --view-sizes 16 --size 16 --backbones mobilenet_v3_small --batch-size 8 --device cpu --write"
    )
    throughput.main(options.split())
    assert peers.MISSING in capsys.readouterr().out
    rows = [line.split("|") for line in (tmp_path / "RESULTS.md").read_text().splitlines() if line.startswith("|")]
    named = [row[2].strip() for row in rows]
    assert named.count("superself") == 3 and named.count("limit") == 2 and "lightly" not in named
    speeds = [row[4] for row in rows if row[2].strip() in ("superself", "limit") and "32-true" in row[3]]
    assert len(speeds) == 2 and all(float(speed.split()[0].replace(",", "")) > 0 for speed in speeds)
