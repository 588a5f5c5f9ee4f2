import csv
from pathlib import Path
from types import SimpleNamespace

import torch
import yaml

from superself.training import Record


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


def test_a_resumed_run_keeps_the_rows_of_finished_epochs_only():
    record = started()
    for epoch in (1, 2, 3):
        record.epoch({"epoch": epoch})
    resumed = Record("store/run")
    resumed.start({"run": run(epoch=2)})
    assert [row["epoch"] for row in resumed.rows] == ["1", "2"]
    assert started().rows == []


def test_skipped_images_are_listed_with_reasons():
    record = Record("store/run")
    record.start({"run": run(skipped={"b.png": "cut\noff", "a.png": "empty"})})
    assert Path("store/run.skipped.txt").read_text() == "a.png\tempty\nb.png\tcut off\n"
