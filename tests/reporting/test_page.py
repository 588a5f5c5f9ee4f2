import csv
import os
import re
from datetime import datetime, timedelta
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from superself import RotateNetSupervisor, report
from superself.reporting.curves import Line, line_chart
from superself.reporting.page import read_record
from superself.reporting.repetition import repeating_code
from superself.training import warmup_cosine

FACTS = {
    "algorithm": "SimCLRSupervisor",
    "arguments": {"augment": "simclr", "temperature": 0.5, "backbone": "resnet9", "projector": None},
    "seed": 3,
    "data": "16 images found",
    "settings": {"lr": 0.001, "optimizer": "torch.optim.adam.Adam", "epochs": 2, "name": "store/base", "resume": False},
    "epochs": 2,
    "versions": {"torch": "2.9"},
    "device": "cpu",
    "warnings": [],
    "start": "2026-01-02T03:04:05+00:00",
    "end": "2026-01-02T03:08:05+00:00",
    "state": "finished",
}
ROWS = [
    {"epoch": 0, "knn": 0.25, "loss": ""},
    {"epoch": 1, "knn": 0.5, "loss": 4.5, "chance_loss": 4.8},
    {"epoch": 2, "knn": 0.4, "loss": 4.0, "chance_loss": 4.8},
]


def write_run(folder, facts=FACTS, rows=ROWS):
    (folder / "base.yaml").write_text(yaml.safe_dump(facts))
    with (folder / "base.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "base"


class Outside(HTMLParser):
    """Collects whatever a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.found += [v for k, v in attributes if k in ("src", "href") and not v.startswith("data:")]
        if tag not in ("meta", "img", "br", "circle", "line", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in ("circle", "line", "polyline"):
            return
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else_and_its_tags_are_closed(tmp_path):
    (tmp_path / "base.knn.png").write_bytes(b"\x89PNG")
    page = report(write_run(tmp_path)).read_text()
    reader = Outside()
    reader.feed(page)
    assert reader.found == [] and reader.open == []
    assert "url(" not in page and "<script" not in page
    assert "data:image/png;base64,iVBORw" in page or "data:image/png;base64,iVBO" in page


def test_it_says_what_was_run_and_what_came_of_it(tmp_path):
    page = report(write_run(tmp_path)).read_text()
    for text in ("SimCLRSupervisor", "25.0% → 40.0%", "chance level 4.8", "4 minutes", "16 images found", "2.9"):
        assert text in page, text
    assert "kNN accuracy was 25.0% before training and 40.0% at the end; the best epoch had 50.0%." in page
    assert "Nothing looked wrong" in page


def test_warnings_replace_the_all_clear_and_are_escaped(tmp_path):
    facts = {**FACTS, "warnings": ["The features have <collapsed>."]}
    page = report(write_run(tmp_path, facts)).read_text()
    assert "&lt;collapsed&gt;" in page and "Nothing looked wrong" not in page


def test_without_an_accuracy_it_says_that_the_loss_is_no_proof(tmp_path):
    rows = [{"epoch": 1, "loss": 4.5}]
    page = report(write_run(tmp_path, rows=rows)).read_text()
    assert "No accuracy was measured" in page


def test_pictures_of_an_earlier_run_are_left_out(tmp_path):
    old, new = tmp_path / "base.png", tmp_path / "base.map.png"
    for path in (old, new):
        path.write_bytes(path.name.encode())
    start = datetime.fromisoformat(FACTS["start"])
    before = (start - timedelta(days=1)).timestamp()
    os.utime(old, (before, before))
    page = report(write_run(tmp_path)).read_text()
    assert page.count("data:image/png") == 1 and "<figcaption>map</figcaption>" in page


def test_a_picture_that_is_too_large_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("superself.reporting.page.LARGEST_PICTURE", 3)
    (tmp_path / "base.map.png").write_bytes(b"1234")
    page = report(write_run(tmp_path)).read_text()
    assert "base.map.png is not shown" in page and "data:image/png" not in page


def test_tables_are_added_and_escaped(tmp_path):
    page = report(write_run(tmp_path), tmp_path / "other.html", {"Comparison": "a < b"}).read_text()
    assert "<h2>Comparison</h2>" in page and "a &lt; b" in page


def test_the_code_runs_the_same_again():
    code = repeating_code(FACTS)
    assert "SimCLRSupervisor(" in code and "    temperature=0.5," in code and "    seed=3," in code
    assert "    optimizer=torch.optim.Adam," in code and "projector" not in code and "resume" not in code
    compile(code, "report", "exec")


def test_the_code_of_a_real_run_runs_again(tmp_path, monkeypatch):
    for i in range(16):
        Image.fromarray(np.full((20 + i % 3, 24, 3), 10 * i, np.uint8)).save(tmp_path / f"{i}.png")
    supervisor = RotateNetSupervisor(tmp_path, image_size=16, backbone="resnet9:width=0.25", seed=0)
    schedule = {"lr_scheduler": warmup_cosine(0.1), "optimizer": torch.optim.AdamW}
    supervisor.supervise(epochs=1, batch_size=8, name=tmp_path / "run", progress=False, **schedule)
    facts, rows = read_record(str(tmp_path / "run"))
    namespace = {}
    exec(repeating_code(facts), namespace)
    again = read_record(str(tmp_path / "run"))[1]
    assert namespace["dataset"] == str(tmp_path) and again[-1]["loss"] == rows[-1]["loss"]
    assert (tmp_path / "run.1.pt").is_file()


def test_features_that_got_worse_are_not_called_fine(tmp_path):
    rows = [{"epoch": 0, "knn": 0.5}, {"epoch": 1, "knn": 0.4, "loss": 4.5}]
    page = report(write_run(tmp_path, rows=rows)).read_text()
    assert "no better than before training: kNN 50.0% → 40.0%" in page and "Nothing looked wrong" not in page


def test_unreadable_images_are_listed(tmp_path):
    (tmp_path / "base.skipped.txt").write_text("a.png\ttruncated\n" * 25)
    page = report(write_run(tmp_path)).read_text()
    assert page.count("a.png: truncated") == 20 and "5 more in base.skipped.txt" in page


def test_a_constant_small_value_has_an_axis_around_it():
    svg = line_chart([Line("lr", [(0, 0.001), (1, 0.001)])], "epochs")
    assert "0.001</text>" in svg and ">0.4</text>" not in svg


def test_a_run_without_a_record_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="supervise"):
        report(tmp_path / "missing")
    (tmp_path / "odd.yaml").write_text("a: 1")
    with pytest.raises(ValueError, match="not the record of a run"):
        report(tmp_path / "odd")
    (tmp_path / "torn.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match="damaged"):
        report(tmp_path / "torn")


def test_empty_cells_are_no_numbers_and_spread_is_relative_to_uniform(tmp_path):
    rows = [{"epoch": 1, "loss": "", "feature_std": 0.05, "feature_std_uniform": 0.1}]
    _, (row,) = read_record(str(write_run(tmp_path, rows=rows)))
    assert row["loss"] is None and row["feature spread"] == 0.5


def test_supervise_writes_the_report_at_the_end(tmp_path):
    supervisor = RotateNetSupervisor(torch.rand(16, 3, 16, 16), backbone="resnet9:width=0.25", seed=0)
    supervisor.supervise(epochs=1, batch_size=8, name=tmp_path / "run", progress=False)
    page = (tmp_path / "run.html").read_text()
    assert "RotateNetSupervisor" in page and "finished" in page


def test_a_report_that_cannot_be_written_does_not_end_the_run(tmp_path):
    (tmp_path / "run.html").mkdir()
    supervisor = RotateNetSupervisor(torch.rand(16, 3, 16, 16), backbone="resnet9:width=0.25", seed=0)
    with pytest.warns(UserWarning, match="report of .* could not be written"):
        supervisor.supervise(epochs=1, batch_size=8, name=tmp_path / "run", progress=False, overwrite=True)
    assert (tmp_path / "run.pt").is_file()


def test_lines_share_a_scale_and_the_level_is_drawn():
    svg = line_chart([Line("a", [(0, 0.0), (1, 1.0)]), Line("b", [(0, 2.0), (1, 3.0)])], "epochs", 4.0, "chance level")
    heights = [float(y) for y in re.findall(r",([\d.]+)", " ".join(re.findall(r'points="([^"]+)"', svg)))]
    assert heights == sorted(heights, reverse=True) and len(set(heights)) == 4
    level = float(re.search(r'class="level"[^>]*y1="([\d.]+)"', svg)[1])
    assert level < min(heights) and "chance level" in svg


def test_one_point_is_a_dot_and_no_point_no_chart():
    assert "<circle" in line_chart([Line("a", [(1, 2.0)])], "epochs")
    assert line_chart([Line("a", [])], "epochs") == ""


@pytest.mark.parametrize("text", [b"epoch\nabc\n", b"epoch\ninf\n", b'epoch\n"' + b"x" * 200_000 + b'"\n'])
def test_a_damaged_table_is_named(tmp_path, text):
    write_run(tmp_path)
    (tmp_path / "base.csv").write_bytes(text)
    with pytest.raises(ValueError, match=r"base\.csv is damaged"):
        report(tmp_path / "base")


def test_a_record_with_values_of_other_kinds_is_named(tmp_path):
    write_run(tmp_path, {**FACTS, "warnings": 5})
    with pytest.raises(ValueError, match=r"base\.yaml is damaged: warnings"):
        report(tmp_path / "base")
