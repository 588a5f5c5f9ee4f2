import csv
from pathlib import Path

import torch
import yaml
from torch import nn

from superself.training import RunRecord, describe_value


def rows():
    with open("store/run.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_facts_and_rows_are_written_as_they_come():
    record = RunRecord("store/run", {"settings": {"lr": 0.1}})
    assert yaml.safe_load(Path("store/run.yaml").read_text())["state"] == "running"
    record.add_epoch({"epoch": 1, "loss": 2.0})
    record.add_epoch({"epoch": 2, "loss": 1.0, "knn": 0.5})
    assert [row["loss"] for row in rows()] == ["2.0", "1.0"] and rows()[1]["knn"] == "0.5"
    record.say("it looks wrong")
    record.end("finished")
    facts = yaml.safe_load(Path("store/run.yaml").read_text())
    assert facts["state"] == "finished" and facts["said"] == ["it looks wrong"] and facts["settings"] == {"lr": 0.1}
    assert facts["versions"]["torch"] == torch.__version__


def test_a_resumed_run_keeps_the_rows_of_finished_epochs_only():
    record = RunRecord("store/run", {})
    for epoch in (1, 2, 3):
        record.add_epoch({"epoch": epoch})
    assert [row["epoch"] for row in RunRecord("store/run", {}, finished_epochs=2).rows] == ["1", "2"]
    assert RunRecord("store/run", {}).rows == []


def test_skipped_images_are_listed_with_reasons():
    record = RunRecord("store/run", {})
    record.skip({"b.png": "cut\noff", "a.png": "empty"})
    assert Path("store/run.skipped.txt").read_text() == "a.png\tempty\nb.png\tcut off\n"
    record.skip({})
    assert not Path("store/run.skipped.txt").exists()


def test_values_of_every_kind_are_described():
    def f(): ...

    described = describe_value(
        {
            "a": (1, 2.5, None, True),
            "net": nn.ReLU(),
            "f": torch.optim.Adam,
            "t": torch.zeros(2, 3),
            "p": Path("x"),
            "g": f,
        }
    )
    assert described["a"] == [1, 2.5, None, True] and described["f"] == "torch.optim.adam.Adam"
    assert "ReLU object" in described["net"] and described["t"] == "Tensor of shape (2, 3)" and described["p"] == "x"
    yaml.safe_dump(described)
