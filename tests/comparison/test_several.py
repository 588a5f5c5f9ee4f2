"""compare with several entries: what may be passed, what is trained, and what the table and the verdict say."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from comparable import Channel, Directions, network, stripes, told
from PIL import Image
from torch import nn

from superself import CombinedNet, LabelSupervisor, RotateNetSupervisor, compare
from superself.comparison import comparing, measuring, training
from superself.comparison.contestants import read_entries
from superself.comparison.training import Trainer
from superself.data import open_images
from superself.evaluation import features
from superself.evaluation.evaluator import Evaluator
from superself.evaluation.knn import knn_accuracy

from cases import TinyBackbone

TRAIN, TEST = stripes(60, 0), stripes(31, 1)
QUIET = {"print": False, "k": 5}
SHORT = {**QUIET, "budget": "1 epoch", "backbone": TinyBackbone(), "settings": {"batch_size": 20, "lr": 0.01}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    name = tmp_path_factory.mktemp("store") / "rotations"
    made = RotateNetSupervisor(TRAIN, backbone="resnet9:width=0.1", seed=0)
    return made.supervise(epochs=2, batch_size=20, name=name, progress=False)


def test_everything_that_holds_a_backbone_is_an_entry(run):
    found = compare([run, run.run.name, run.get_backbone()], TRAIN, TEST, **QUIET)
    names = ["RotateNet", run.run.name, "resnet9:width=0.1"]
    assert list(found.rows)[0] == "random initialised" and len(found.rows) == 4
    assert list(found.rows)[1:3] == names[:2]
    rows = list(found.rows.values())[1:]
    assert rows[0] == rows[1] == rows[2]
    for name in names[:2]:
        assert found.facts[name]["images_seen"] == 120 and found.facts[name]["minutes"] > 0
    assert found.facts[list(found.rows)[3]].keys() == {"runs", "parameters"}  # a mere network: unknown, so "-"
    line = next(line for line in found.text.splitlines() if line.startswith(list(found.rows)[3]))
    assert line.split().count("-") == 2


def test_a_dictionary_names_its_entries_and_equal_names_get_numbers(run):
    assert list(compare({"a": run, "b": Directions()}, TRAIN, TEST, random=network(), **QUIET).rows)[1:] == ["a", "b"]
    assert [entry.name for entry in read_entries([run, run, "simclr"])] == ["RotateNet", "RotateNet 2", "simclr"]


def test_what_cannot_be_compared_is_named():
    with pytest.raises(TypeError, match="3 cannot be compared; pass a module"):
        compare([3], TRAIN, TEST, **QUIET)
    with pytest.raises(ValueError, match="nothing to compare"):
        compare([], TRAIN, TEST, **QUIET)
    with pytest.raises(ValueError, match="simclr, byol would be trained, and budget= is missing"):
        compare(["simclr", ("byol", {})], TRAIN, TEST, **QUIET)
    with pytest.raises(ValueError, match="settings has epochs, which compare.. sets itself; use budget="):
        compare(["simclr"], TRAIN, TEST, budget=1, settings={"epochs": 3}, **QUIET)
    with pytest.raises(TypeError, match="lists methods to train.*seeds="):
        compare([["simclr", "simclr"]], TRAIN, TEST, budget=1, **QUIET)


def test_several_runs_of_a_method_give_mean_and_deviation():
    runs = [network(seed) for seed in (1, 2, 3)]
    found = compare({"three": runs, "one": Directions()}, TRAIN, TEST, random=network(9), **QUIET)
    values = [100 * compare(part, TRAIN, TEST, random=network(9), **QUIET).rows["trained"]["knn"] for part in runs]
    mean, deviation = torch.tensor(values).mean().item(), torch.tensor(values).std().item()
    assert found.rows["three"]["knn"] == pytest.approx(mean / 100)
    assert found.deviations["three"]["knn"] == pytest.approx(deviation / 100) and "one" not in found.deviations
    line = next(line for line in found.text.splitlines() if line.startswith("three"))
    assert f"{mean:.1f} ± {deviation:.1f}%" in line
    assert "± is the standard deviation over runs" in found.text and found.facts["three"]["runs"] == 3


def test_each_architecture_has_a_random_row_for_each_seed(run):
    found = compare({"a": run, "b": network(), "c": network(2)}, TRAIN, TEST, seeds=(0, 1), **QUIET)
    assert list(found.rows) == ["random initialised", "random initialised (of b)", "a", "b", "c"]
    assert found.facts["random initialised"]["runs"] == found.facts["random initialised (of b)"]["runs"] == 2
    pairs = {(v.first, v.second) for v in found.verdicts if v.second.startswith("random")}
    assert pairs == {("a", "random initialised"), *((name, "random initialised (of b)") for name in "bc")}
    assert "freshly initialised with seeds 0, 1" in found.text


def test_the_best_and_what_is_no_different_from_it_are_named():
    entries = {"poor": Channel(0), "good": Channel(1), "best": Channel(2)}
    found = compare(entries, told(60, (0, 0, 0)), told(100, (50, 6, 5)), random=Channel(0), how=("knn",), **QUIET)
    assert found.best == "best"
    # 45 images are right with the best alone: sqrt(45 + 1 - 45^2 / 102) / 102 = 0.05013, by 1.9837: 9.9 points
    line = next(line for line in found.text.splitlines() if line.startswith("kNN: the best"))
    assert line == (
        "kNN: the best entry is best; not significantly different: good (-1.0 ± 2.7 points); "
        "worse: poor (-45.0 ± 9.9 points)."
    )
    assert "no significant gain over random weights: poor (+0.0 ± " in found.text
    assert json.loads(json.dumps(found.to_dict()))["rows"][1]["name"] == "poor"
    assert [row["knn"] for row in found.to_dict()["rows"]] == pytest.approx([0.5, 0.5, 0.94, 0.95])


def test_methods_are_trained_for_the_budget_with_each_seed(tmp_path):
    entries = ["rotatenet", ("simclr", {"temperature": 0.2})]
    found = compare(entries, TRAIN, TEST, seeds=(0, 1), store=tmp_path / "kept", **SHORT)
    assert list(found.rows) == ["random initialised", "rotatenet", "simclr"]
    assert all(found.facts[name]["runs"] == 2 for name in found.rows)
    assert found.facts["rotatenet"]["images_seen"] == 60 and found.facts["rotatenet"]["minutes"] > 0
    assert sorted(path.name for path in (tmp_path / "kept").glob("*.pt")) == [
        *("rotatenet-0.pt", "rotatenet-1.pt", "simclr-0.pt", "simclr-1.pt")
    ]
    assert "1 epoch a run: rotatenet 1 epoch of 60 images, simclr 1 epoch of 60 images; batch_size=20" in found.text
    again = compare(entries, TRAIN, TEST, seeds=(0, 1), **SHORT)
    assert again.rows == found.rows and again.deviations == found.deviations
    assert not (tmp_path / "store").exists()


def test_training_does_not_see_labels(monkeypatch):
    given = []

    def create(method, images, **arguments):
        given.append(images)
        return real(method, images, **arguments)

    real = training.create
    monkeypatch.setattr(training, "create", create)
    trainer = Trainer(comparing.parse_budget("1 epoch"), {"batch_size": 20}, TinyBackbone(), progress=False)
    with trainer.folder():
        trainer.pretrain("row", "rotatenet", TRAIN, 0, {})
    assert given and all(images.labels is None and images.batch([0]).target is None for images in given)
    assert TRAIN.labels is not None and TRAIN.classes == ["columns", "rows", "flat"]


def test_a_budget_of_time_is_planned_once_for_all_seeds(monkeypatch):
    calls = []
    monkeypatch.setattr("superself.comparison.training.seconds_per_step", lambda *_: calls.append(1) or 0.5)
    found = compare("rotatenet", TRAIN, TEST, seeds=(0, 1), **{**SHORT, "budget": "3s"})
    assert "rotatenet 2 epochs of 60 images" in found.text and len(calls) == 1  # 6 steps of 20 images
    found = compare("rotatenet", TRAIN, TEST, **{**SHORT, "budget": "1s"})
    assert "rotatenet 1 epoch of 40 images" in found.text  # not even one epoch fits


def test_training_with_labels_adds_rows_with_a_head():
    images = told(60, (0, 0, 0))
    found = compare({"tiny": TinyBackbone()}, images, told(31, (0, 0, 0)), supervised=True, finetune=True, **SHORT)
    assert list(found.rows) == ["random initialised", "supervised", "tiny", "tiny, fine-tuned"]
    assert found.rows["supervised"].keys() == {"knn", "linear", "head"} and "head" not in found.rows["tiny"]
    assert "own head" in found.text.splitlines()[0]
    assert found.facts["supervised"]["images_seen"] == 60


def test_the_head_is_measured_on_the_test_images():
    trainer = Trainer(comparing.parse_budget("20 epochs"), {"batch_size": 20, "lr": 0.01}, progress=False)
    train, test = told(60, (0, 0, 0)), told(31, (0, 0, 0))
    with trainer.folder():
        supervisor, facts = trainer.with_labels("row", TinyBackbone(), train, 0, from_scratch=False)
    assert supervisor.accuracy(test) > 0.9 and facts["images_seen"] == 1200
    rates = {group["name"]: group["initial_lr"] for group in supervisor.run.optimizer.param_groups}
    assert rates == {"main": 0.01, "backbone": pytest.approx(0.001)}


def test_weights_of_a_file_are_a_row(tmp_path):
    torch.save(network(7).state_dict(), tmp_path / "weights.pth")
    found = compare({"a": network()}, TRAIN, TEST, imagenet=tmp_path / "weights.pth", random=network(3), **QUIET)
    assert list(found.rows) == ["random initialised", "ImageNet", "a"]
    passed = compare({"a": network()}, TRAIN, TEST, imagenet=network(7), random=network(3), **QUIET)
    assert passed.rows.keys() == found.rows.keys()


def test_few_labels_and_evaluators_are_columns():
    class Width(Evaluator):
        def evaluate(self, subject):
            return {"width": subject.features(subject.images).features.shape[1]}

    found = compare(
        {"a": Directions()}, TRAIN, TEST, random=network(), fractions=(0.1, 1.0), evaluators=[Width()], **QUIET
    )
    assert found.rows["a"].keys() == {"knn", "linear", "linear@10%", "linear@100%", "width"}
    assert found.rows["a"]["linear@100%"] == pytest.approx(found.rows["a"]["linear"])
    assert (found.rows["a"]["width"], found.rows["random initialised"]["width"]) == (2, 6)
    assert "10% labels" in found.text.splitlines()[0]
    with pytest.raises(ValueError, match="how='svn' is unknown"):
        compare(network(), TRAIN, TEST, how=("svn",), **QUIET)


def test_test_images_that_were_trained_on_are_a_warning():
    images = TEST.batch(range(31))
    seen = torch.cat([images.images[:25], TRAIN.batch(range(6)).images])
    found = compare(Directions(), TRAIN, open_images((seen, images.target)), random=network(), **QUIET)
    assert "Warning: 6 of 31 test images (19.4%) are near-duplicates of training images" in found.text
    assert found.warnings and not compare(Directions(), TRAIN, TEST, random=network(), **QUIET).warnings


def test_an_interruption_keeps_what_was_measured(monkeypatch, capsys):
    real, count = comparing.measure, []

    def interrupted(*arguments):
        count.append(1)
        if len(count) > 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(comparing, "measure", interrupted)
    found = compare({"a": network(1), "b": network(2)}, TRAIN, TEST, k=5)
    assert list(found.rows) == ["random initialised", "a"] and not found.complete
    assert "Interrupted: this is what had been measured, 2 networks." in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):  # nothing has been measured
        compare(network(), TRAIN, TEST, k=5)


def test_an_error_prints_what_was_measured(monkeypatch, capsys):
    broken = network(2)
    broken[0].weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="not finite"):
        compare({"a": network(1), "b": broken}, TRAIN, TEST, k=5)
    assert "\na " in capsys.readouterr().out


def test_comparing_changes_nothing():
    given = network().train()
    before = copy.deepcopy(given.state_dict())
    state = torch.get_rng_state()
    compare([given, "rotatenet"], TRAIN, TEST, finetune=True, **SHORT)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in given.state_dict().items())
    assert all(module.training for module in given)


def test_unreadable_test_images_are_left_out_of_every_row(monkeypatch):
    monkeypatch.setattr("superself.data.images.BROKEN_SHARE", 0.5)

    class Broken(list):
        def __getitem__(self, place):
            if place == 2:
                raise OSError("bad sector")
            return super().__getitem__(place)

    batch = TEST.batch(range(31))
    items = Broken(list(zip(batch.images, batch.target.tolist(), strict=True)))
    found = compare(Directions(), TRAIN, items, random=network(), **QUIET)
    right = measuring.measure(Directions(), measuring.Splits(TRAIN, items), measuring.Protocol(k=5), 0).correct["knn"]
    assert right.isnan().nonzero().flatten().tolist() == [2]  # keeps its place, so that rows can be paired by image
    kept = [place for place in range(31) if place != 2]
    known, asked = features(Directions(), TRAIN), features(Directions(), (batch.images[kept], batch.target[kept]))
    assert "60 training and 30 test images" in found.text
    assert found.rows["trained"]["knn"] == pytest.approx(knn_accuracy(known, asked, k=5), abs=0.04)


def test_a_label_supervisor_is_an_entry():
    head = nn.Linear(16, 3)
    supervisor = LabelSupervisor(CombinedNet(TinyBackbone(), head), TRAIN)
    assert list(compare([supervisor], TRAIN, TEST, random=network(), **QUIET).rows)[1] == "Label"


def test_images_of_different_sizes_are_opened_at_image_size(tmp_path):
    for part, count in (("train", 12), ("test", 8)):
        for i in range(count):
            path = tmp_path / part / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((16 + i % 3, 16, 3), 100 * (i % 2) + i, np.uint8)).save(path)
    train, test = (f"imagefolder:{tmp_path / part}" for part in ("train", "test"))
    found = compare(["simclr"], train, test, image_size=16, **{**SHORT, "settings": {"batch_size": 6}, "k": 3})
    assert "simclr" in found.rows
    with pytest.raises(ValueError, match="image_size"):
        compare(["simclr"], train, test, **{**SHORT, "k": 3})


def test_the_minutes_of_a_run_with_a_probe_are_known():
    made = RotateNetSupervisor(TRAIN, backbone="resnet9:width=0.1", seed=0)
    made.supervise(epochs=1, batch_size=20, name="probed", progress=False, probe=(TRAIN, TEST))
    assert compare(["probed"], TRAIN, TEST, **QUIET).facts["probed"]["minutes"] > 0
