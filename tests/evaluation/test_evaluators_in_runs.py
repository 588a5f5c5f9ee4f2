"""supervise(evaluators=..., probe=..., testdata=..., notes=..., keep_best=...)."""

import csv
import errno
import importlib
import math
import os
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import TensorDataset

import superself
from superself import Tracker
from superself.evaluation import KNN, Evaluator, features, knn_accuracy
from superself.evaluation.pictures.canvas import new_figure, save_figure
from superself.training import read_checkpoint

from cases import TinyBackbone, tiny_images

TRACKING = "superself.evaluation.tracking"
SHORT = {"batch_size": 8, "name": "run", "progress": False, "precision": "32-true"}


def labelled(n=24, seed=0):
    return TensorDataset(tiny_images(n, seed=seed), torch.arange(n) % 2)


def simclr(cls=superself.SimCLRSupervisor, **arguments):
    return cls(tiny_images(16), backbone=TinyBackbone(), seed=0, **arguments)


def rows(name="run"):
    with open(f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def column(key, name="run"):
    return [row[key] for row in rows(name)]


def without_clocks(name="run"):
    clocks = ("images_per_second", "waiting_share", "seconds")
    return [{key: value for key, value in row.items() if key not in clocks} for row in rows(name)]


def weights_of(supervisor):
    return {name: value.clone() for name, value in supervisor.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Scripted(Evaluator):
    """Gives the listed values one after the other; draws random numbers, uses the network in a careless way."""

    def __init__(self, values=(), name="scripted", higher=True, every=1, fails_from=None, draws=True):
        super().__init__(every)
        self.values, self.fails_from, self.draws, self.calls = list(values), fails_from, draws, 0
        self.name, self.higher_is_better = name, higher

    def evaluate(self, subject):
        torch.rand(3)
        subject.backbone(subject.preprocessing(subject.images.sample(4)))
        self.calls += 1
        if self.fails_from is not None and self.calls >= self.fails_from:
            raise RuntimeError("out of luck")
        value = self.values.pop(0) if self.values else float(self.calls)
        return {self.name: value, f"{self.name}_detail": 2 * value}

    def figure(self, subject, path):
        return save_figure(new_figure(1, 1), path) if self.draws else None


class Sees(Tracker):
    def __init__(self):
        self.baselines, self.figures, self.epochs, self.warned, self.notes = [], [], [], [], None

    def start(self, facts):
        self.notes = facts["notes"]

    def baseline(self, row):
        self.baselines.append(row)

    def figure(self, name, path):
        self.figures.append((name, path, path.is_file()))

    def epoch(self, row):
        self.epochs.append(row)

    def warn(self, text):
        self.warned.append(text)


# ---- what is measured, and when --------------------------------------------------------------------------------------


def test_values_before_the_first_step_are_row_0_and_reach_every_tracker():
    seen = Sees()
    simclr().supervise(epochs=2, evaluators=[Scripted()], trackers=[seen], **SHORT)
    assert column("epoch") == ["0", "1", "2"] and column("scripted") == ["1.0", "2.0", "3.0"]
    assert column("scripted_detail") == ["2.0", "4.0", "6.0"]
    first = rows()[0]
    assert first["loss"] == "" and float(first["feature_std"]) > 0
    assert list(first)[:2] == ["epoch", "loss"]  # the columns are in the order of the epochs' rows
    (baseline,) = seen.baselines
    assert baseline["epoch"] == 0 and baseline["scripted"] == 1.0 and "loss" not in baseline
    assert [row["scripted"] for row in seen.epochs] == [2.0, 3.0]


def test_without_evaluators_there_is_no_row_0():
    seen = Sees()
    simclr().supervise(epochs=1, trackers=[seen], **SHORT)
    assert column("epoch") == ["1"] and seen.baselines == []


def test_every_so_many_epochs_and_after_the_last():
    simclr().supervise(epochs=5, evaluators=[Scripted(every=2), Scripted(name="all")], **SHORT)
    assert column("scripted") == ["1.0", "", "2.0", "", "3.0", "4.0"]
    assert column("all") == ["1.0", "2.0", "3.0", "4.0", "5.0", "6.0"]


def test_the_value_before_training_is_that_of_the_weights_it_starts_from():
    test = labelled(seed=1)
    simclr().supervise(epochs=1, lr=0.1, **SHORT | {"name": "first"})
    start = simclr().load("first").get_backbone()
    expected = knn_accuracy(features(start, test), features(start, test), k=3)
    simclr().supervise(epochs=1, pretrained="first", evaluators=[KNN(test, test, k=3)], **SHORT)
    assert float(rows()[0]["knn"]) == expected
    trained = simclr().load("run").get_backbone()
    assert float(rows()[1]["knn"]) == knn_accuracy(features(trained, test), features(trained, test), k=3)


def test_the_probe_is_a_knn_evaluator_with_at_most_20_neighbours():
    small = TensorDataset(tiny_images(6, size=(40, 20)), torch.arange(6) % 2)
    supervisor = simclr().supervise(epochs=3, probe=(small, labelled()), probe_every=2, **SHORT)
    assert [bool(value) for value in column("knn")] == [True, False, True, True]
    backbone = supervisor.get_backbone()
    known = features(backbone, superself.data.open_images(small, image_size=(16, 16)))
    assert float(rows()[-1]["knn"]) == knn_accuracy(known, features(backbone, labelled()), k=6)


def test_the_loss_of_held_out_images_is_measured_and_their_images_are_not_trained_on():
    test = tiny_images(20, seed=5)
    plain = simclr().supervise(epochs=2, **SHORT | {"name": "plain"})
    measured = simclr().supervise(epochs=2, testdata=test, **SHORT)
    assert_same(weights_of(plain), weights_of(measured))
    assert all(0 < float(loss) < 10 for loss in column("held_out_loss"))
    assert "top1" in rows()[1] and column("top1", "plain") == column("top1")[1:]  # what _forward notes is not mixed in


def test_the_held_out_loss_leaves_a_bank_and_a_queue_alone():
    for cls in (superself.InstanceDiscriminationSupervisor, superself.MomentumContrastSupervisor):
        arguments = {"queue_size": 16} if "Momentum" in cls.__name__ else {}
        plain = simclr(cls, **arguments).supervise(epochs=2, **SHORT | {"name": "plain"})
        measured = simclr(cls, **arguments).supervise(epochs=2, testdata=tiny_images(12, seed=2), **SHORT)
        assert_same(weights_of(plain), weights_of(measured))


def test_a_method_that_knows_its_images_has_no_held_out_loss():
    supervisor = simclr(superself.ExemplarNetSupervisor)
    with pytest.raises(ValueError, match="^testdata: the loss of ExemplarNetSupervisor is about its own"):
        supervisor.supervise(epochs=1, testdata=tiny_images(8), **SHORT)
    assert os.listdir() == []


# ---- they only observe -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [superself.SimCLRSupervisor, superself.BYOLSupervisor, superself.RotateNetSupervisor])
def test_weights_statistics_and_random_states_are_those_of_a_run_without_evaluators(cls):
    plain = simclr(cls).supervise(epochs=2, **SHORT | {"name": "plain"})
    state = torch.get_rng_state()

    class Draws(Scripted):
        def evaluate(self, subject):
            torch.rand(2, generator=measured.generator)
            return super().evaluate(subject)

    measured = simclr(cls)
    options = {"probe": (labelled(), labelled()), "testdata": tiny_images(9), "evaluators": [Draws()]}
    measured.supervise(epochs=2, **options, **SHORT)
    assert_same(weights_of(plain), weights_of(measured))  # with the running statistics of batch norms
    assert torch.equal(plain.generator.get_state(), measured.generator.get_state())
    assert torch.equal(state, torch.get_rng_state())


def test_a_resumed_run_has_the_same_weights_and_the_same_table():
    def options():
        return {"evaluators": [KNN(labelled(), labelled(seed=1), k=3)], "testdata": tiny_images(8, seed=3)}

    whole = simclr().supervise(epochs=4, **options(), **SHORT | {"name": "whole"})
    simclr().supervise(epochs=2, **options(), **SHORT)
    resumed = simclr().supervise(epochs=4, resume=True, **options(), **SHORT)
    assert_same(weights_of(whole), weights_of(resumed))
    assert without_clocks() == without_clocks("whole") and len(rows()) == 5


def test_evaluators_may_change_between_resumptions_and_new_ones_say_since_when(capsys):
    simclr().supervise(epochs=1, evaluators=[Scripted(name="a")], **SHORT)
    options = SHORT | {"progress": True}
    simclr().supervise(epochs=2, resume=True, evaluators=[Scripted([5.0, 7.0], name="b")], **options)
    assert column("a") == ["1.0", "2.0", ""] and column("b") == ["", "", "7.0"]
    assert "after training: b 7 (+2 since epoch 1)" in capsys.readouterr().out


def test_a_resumed_run_does_not_measure_again_what_it_knows():
    simclr().supervise(epochs=1, evaluators=[Scripted()], **SHORT)
    again = Scripted()
    simclr().supervise(epochs=2, resume=True, evaluators=[again], **SHORT)
    assert again.calls == 1 and column("epoch") == ["0", "1", "2"]


# ---- what fails ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_measured_fails_before_the_first_step_and_leaves_no_file():
    for evaluators, message in (
        ([Scripted(fails_from=1)], "out of luck"),
        ([KNN(tiny_images(8), labelled())], "^knn: train has no labels"),
        ([Scripted(name="loss")], "'loss', which is a column of every run"),
        ([3], "evaluators has 3, which is not a Evaluator"),
        ([KNN], "pass instances"),
        (KNN(labelled(), labelled()), "pass a list"),
    ):
        supervisor = simclr()
        with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
            supervisor.supervise(epochs=1, evaluators=evaluators, **SHORT)
        assert supervisor.step == 0 and os.listdir() == []


def test_an_evaluator_that_fails_later_is_reported_once_and_the_run_goes_on():
    seen, good = Sees(), Scripted(name="good")
    simclr().supervise(epochs=3, evaluators=[Scripted(fails_from=2), good], trackers=[seen], **SHORT)
    assert column("scripted") == ["1.0", "nan", "nan", "nan"] and column("good") == ["1.0", "2.0", "3.0", "4.0"]
    (text,) = [text for text in seen.warned if "evaluator" in text]
    assert "The evaluator scripted failed after epoch 1 (RuntimeError: out of luck)" in text
    simclr().supervise(epochs=4, resume=True, evaluators=[Scripted(fails_from=1)], trackers=[seen], **SHORT)
    assert sum("evaluator" in text for text in seen.warned) == 1  # not again in the resumed run


def test_features_that_are_not_finite_give_nan():
    class Explodes(superself.SimCLRSupervisor):
        def _after_step(self):
            with torch.no_grad():  # the weights stay finite, the features do not
                self.model.backbone.layers[4].weight.fill_(3e38)
                self.model.backbone.layers[4].bias.fill_(3e38)

    seen = Sees()
    simclr(Explodes).supervise(epochs=1, probe=(labelled(), labelled()), trackers=[seen], on_nan="skip", **SHORT)
    assert math.isnan(float(rows()[1]["knn"])) and not any("evaluator" in text for text in seen.warned)


def test_ctrl_c_passes_through_an_evaluator():
    class Interrupts(Scripted):
        def evaluate(self, subject):
            if self.calls:
                raise KeyboardInterrupt
            return super().evaluate(subject)

    with pytest.raises(KeyboardInterrupt):
        simclr().supervise(epochs=1, evaluators=[Interrupts()], **SHORT)


# ---- what is shown and kept ------------------------------------------------------------------------------------------


def test_gain_and_main_values_are_printed(capsys):
    values = {"probe": (labelled(), labelled()), "evaluators": [Scripted([0.5, 0.75], name="a_linear")]}
    simclr().supervise(epochs=1, **values, **SHORT | {"progress": True})
    lines = capsys.readouterr().out.splitlines()
    (before,) = [line for line in lines if line.startswith("before training: ")]
    (epoch,) = [line for line in lines if line.startswith("epoch 1/1 | ")]
    (after,) = [line for line in lines if line.startswith("after training: ")]
    knn = [float(value) for value in column("knn")]
    assert before == f"before training: kNN {knn[0]:.1%}, a linear 50.0%"
    assert f"kNN {knn[1]:.0%} | a linear 75%" in epoch and "detail" not in epoch and len(epoch) <= 100
    assert after == f"after training: kNN {knn[1]:.1%} ({100 * (knn[1] - knn[0]):+.1f}), a linear 75.0% (+25.0)"


def test_pictures_lie_next_to_the_run_and_reach_trackers_and_follow_it_into_the_archive():
    seen = Sees()
    simclr().supervise(epochs=2, evaluators=[Scripted(), Scripted(name="plain", draws=False)], trackers=[seen], **SHORT)
    assert seen.figures == [("scripted", Path("run.scripted.png"), True)] * 2
    assert sorted(os.listdir()) == ["run.csv", "run.html", "run.pt", "run.scripted.png", "run.yaml"]
    simclr().supervise(epochs=1, **SHORT)
    assert "run.1.scripted.png" in os.listdir() and "run.scripted.png" not in os.listdir()
    simclr().supervise(epochs=1, evaluators=[Scripted()], **SHORT)
    assert {"run.1.scripted.png", "run.2.pt", "run.scripted.png"} <= set(os.listdir())
    simclr().supervise(epochs=1, overwrite=True, **SHORT)
    assert "run.scripted.png" not in os.listdir() and "run.1.scripted.png" in os.listdir()


def test_notes_are_kept_in_record_checkpoint_and_trackers_also_after_resuming():
    seen = Sees()
    simclr().supervise(epochs=1, notes="the first try", trackers=[seen], **SHORT)
    assert seen.notes == "the first try"
    simclr().supervise(epochs=2, resume=True, **SHORT)
    assert yaml.safe_load(Path("run.yaml").read_text())["notes"] == "the first try"
    assert read_checkpoint("run")["settings"]["notes"] == "the first try"
    simclr().supervise(epochs=3, resume=True, notes="better", **SHORT)
    assert read_checkpoint("run")["settings"]["notes"] == "better"
    with pytest.raises(TypeError, match="notes=3 must be a text"):
        simclr().supervise(notes=3, **SHORT)


def test_a_main_value_that_is_new_in_a_later_epoch_has_a_gain_since_then(capsys):
    class Renames(Scripted):
        def evaluate(self, subject):
            self.calls += 1
            return {f"e{min(self.calls, self.last)}": float(self.calls)}

    for last, shown in ((4, "after training: e4 4"), (3, "after training: e3 4 (+1 since epoch 2)")):
        evaluator = Renames()
        evaluator.last = last
        simclr().supervise(epochs=3, overwrite=True, evaluators=[evaluator], **SHORT | {"progress": True})
        assert shown in capsys.readouterr().out.splitlines()
    assert column("e3") == ["", "", "3.0", "4.0"]


# ---- the best checkpoint ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("higher", "best"), [(True, 2), (False, 1)])
def test_the_best_epoch_is_kept_and_can_be_loaded(higher, best):
    kept = {}

    class Keeps(Tracker):
        def epoch(self, row):
            kept[row["epoch"]] = weights_of(supervisor)

    supervisor = simclr()
    evaluator = Scripted([0.0, 1.0, 5.0, math.nan, 3.0], higher=higher)
    supervisor.supervise(epochs=4, evaluators=[evaluator], keep_best="scripted", trackers=[Keeps()], **SHORT)
    assert read_checkpoint("run.best")["epoch"] == best
    assert_same(weights_of(simclr().load("run.best")), kept[best])
    simclr().supervise(epochs=1, **SHORT)
    assert {"run.1.best.pt", "run.1.pt"} <= set(os.listdir()) and "run.best.pt" not in os.listdir()


def test_a_resumed_run_remembers_the_best_epoch():
    simclr().supervise(epochs=2, evaluators=[Scripted([0.0, 5.0, 1.0])], keep_best="scripted", **SHORT)
    options = {"resume": True, "keep_best": "scripted", **SHORT}
    simclr().supervise(epochs=3, evaluators=[Scripted([4.0])], **options)
    assert read_checkpoint("run.best")["epoch"] == 1
    simclr().supervise(epochs=4, evaluators=[Scripted([6.0])], **options)
    assert read_checkpoint("run.best")["epoch"] == 4


@pytest.mark.parametrize("place", ["superself.training.run.write_checkpoint", TRACKING + ".copy_completely"])
def test_an_epoch_that_a_full_disk_did_not_keep_is_not_the_best(place, monkeypatch):
    module, name = place.rsplit(".", 1)
    write, seen, calls = getattr(importlib.import_module(module), name), Sees(), []

    def full_at_first(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(place, full_at_first)
    evaluator = Scripted([0.0, 9.0, 5.0, 4.0])
    simclr().supervise(epochs=3, evaluators=[evaluator], keep_best="scripted", trackers=[seen], **SHORT)
    assert read_checkpoint("run.best")["epoch"] == 2
    assert [text[:37] for text in seen.warned if "best" in text] == ["Epoch 1 is the best so far by scripte"]


def test_a_run_that_was_killed_before_it_kept_the_best_keeps_it_when_it_goes_on():
    options = {"keep_best": "scripted", **SHORT}
    simclr().supervise(epochs=1, evaluators=[Scripted([0.0, 5.0])], **options)
    os.unlink("run.best.pt")  # NAME.pt is as it was before the copy
    simclr().supervise(epochs=2, resume=True, evaluators=[Scripted([1.0])], **options)
    assert read_checkpoint("run.best")["epoch"] == 1


@pytest.mark.parametrize("name", ["scripted_detail", "neither", "knn"])
def test_the_best_is_chosen_by_a_main_value_with_a_direction(name):
    evaluators = [Scripted(), Scripted(name="neither", higher=None)]
    with pytest.raises(ValueError, match=f"keep_best='{name}' is not the main value .* pass one of 'scripted'"):
        simclr().supervise(epochs=1, evaluators=evaluators, keep_best=name, **SHORT)
    with pytest.raises(ValueError, match="adding evaluators= or probe="):
        simclr().supervise(epochs=1, keep_best=name, **SHORT)


def test_a_value_that_is_new_in_the_last_epoch_has_no_gain():
    class Changing(Evaluator):
        name = "changing"

        def evaluate(self, subject):
            self.calls = getattr(self, "calls", 0) + 1
            return {f"e{self.calls}": 1.0}

    simclr().supervise(epochs=2, evaluators=[Changing()], **SHORT)
    assert os.path.exists("run.pt")
