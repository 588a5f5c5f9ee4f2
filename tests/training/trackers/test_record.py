import csv
import errno
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import yaml

from superself.training import Record
from superself.training.checkpoint import is_plain


def rows():
    with open("store/run.csv", newline="") as file:
        return list(csv.DictReader(file))


def run(epoch=0, skipped=None):
    return SimpleNamespace(epoch=epoch, skipped=skipped or {})


def started(**facts):
    record = Record("store/run")
    record.start({"run": run(), **facts})
    return record


def test_facts_and_rows_are_written_as_they_come():
    record = started(settings={"lr": 0.1})
    assert yaml.safe_load(Path("store/run.yaml").read_text())["state"] == "running"
    record.epoch({"epoch": 1, "loss": 2.0, "step": 5, "seconds_left": 1.0})
    record.epoch({"epoch": 2, "loss": 1.0, "knn": 0.5})
    assert [row["loss"] for row in rows()] == ["2.0", "1.0"] and rows()[1]["knn"] == "0.5"
    assert "seconds_left" not in rows()[0]
    record.warn("it looks wrong")
    record.end("finished")
    facts = yaml.safe_load(Path("store/run.yaml").read_text())
    assert facts["state"] == "finished" and facts["warnings"] == ["it looks wrong"] and facts["settings"] == {"lr": 0.1}
    assert facts["versions"]["torch"] == torch.__version__


def test_a_resumed_run_keeps_the_rows_of_the_checkpoint():
    record = started()
    for epoch in (1, 2, 3):
        record.epoch({"epoch": epoch, "loss": 0.1 * epoch})
    state = record.state_dict()
    record.epoch({"epoch": 4})
    resumed = Record("store/run")
    resumed.load_state_dict(state)
    resumed.start({"run": run(epoch=2)})
    assert rows() == [{"epoch": "1", "loss": "0.1"}, {"epoch": "2", "loss": "0.2"}]
    started()
    assert rows() == []


def test_a_row_is_part_of_the_state_before_its_epoch_is_stored():
    record = started()
    row = {"epoch": 1, "loss": torch.tensor(0.5), "step": 3}
    record.measure(row)
    row["knn"], row["odd"] = np.float64(0.25), Path("a")  # by trackers that come later
    assert record.state_dict() == {"rows": [{"epoch": 1, "loss": 0.5, "knn": 0.25, "odd": "a"}]}
    assert is_plain(record.state_dict()) and rows() == []
    record.epoch(row)
    assert rows() == [{"epoch": "1", "loss": "0.5", "knn": "0.25", "odd": "a"}]


def test_skipped_images_are_listed_with_reasons():
    record = Record("store/run")
    record.start({"run": run(skipped={"b.png": "cut\noff", "a.png": "empty"})})
    assert Path("store/run.skipped.txt").read_text() == "a.png\tempty\nb.png\tcut off\n"


def test_names_of_files_may_hold_any_bytes():
    started_run = run(skipped={"b\udcff.png": "cut off"})
    Record("store/run").start({"run": started_run})
    assert Path("store/run.skipped.txt").read_text() == "b\\udcff.png\tcut off\n"


def test_a_disk_that_fails_is_reported_once_and_files_are_written_when_it_works_again(monkeypatch, recwarn):
    record = started()
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *paths: full())
        record.epoch({"epoch": 1})
        record.warn("it looks wrong")
        record.epoch({"epoch": 2})
    assert [str(w.message) for w in recwarn] == [
        "store/run.csv could not be written (No space left on device); training continues and tries again."
    ]
    assert rows() == [] and sorted(os.listdir("store")) == ["run.csv", "run.yaml"]
    record.epoch({"epoch": 3})
    assert [row["epoch"] for row in rows()] == ["1", "2", "3"]
    assert yaml.safe_load(Path("store/run.yaml").read_text())["warnings"] == ["it looks wrong"]
    record.end("finished")
    assert len(recwarn) == 1


def test_what_is_still_missing_at_the_end_is_reported(monkeypatch, recwarn):
    record = started()
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *paths: full())
        record.epoch({"epoch": 1})
        record.end("stopped by an error")
    texts = [str(w.message) for w in recwarn]
    assert "store/run.csv is not complete: it could not be written (No space left on device)." in texts
    assert any(text.startswith("store/run.yaml is not complete") for text in texts)


def full():
    raise OSError(errno.ENOSPC, "No space left on device")
