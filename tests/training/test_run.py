from __future__ import annotations

import copy
import csv
import os
import pickle
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, Dataset

from superself import BYOLSupervisor, RotateNetSupervisor, Tracker
from superself.training import read_checkpoint

from cases import TinyBackbone, tiny_images

SHORT = {"epochs": 2, "batch_size": 8, "name": "run", "progress": False}


def rotatenet(cls=RotateNetSupervisor, n=16, **arguments):
    return cls(tiny_images(n), **{"backbone": TinyBackbone(), "seed": 0, **arguments})


def weights_of(supervisor):
    return {name: tensor.clone() for name, tensor in supervisor.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def read_rows(name="run"):
    with open(f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def record(name="run"):
    return yaml.safe_load(Path(f"{name}.yaml").read_text())


# ---- a run that never starts -----------------------------------------------------------------------------------------


class ReturnsNone(RotateNetSupervisor):
    def _forward(self, data):
        return None


class CannotStart(Tracker):
    def start(self, facts):
        raise RuntimeError("no network")


def without_a_loss(**settings):
    rotatenet(ReturnsNone).supervise(**SHORT | settings)


def with_an_unlabelled_probe(**settings):
    rotatenet().supervise(**SHORT | settings, probe=(tiny_images(), tiny_images()))


def with_a_tracker_that_fails(**settings):
    rotatenet().supervise(**SHORT | settings, trackers=[CannotStart()])


def without_data(**settings):
    RotateNetSupervisor(backbone=TinyBackbone()).load("run").supervise(**SHORT | settings)


@pytest.mark.parametrize(
    "settings", [{}, {"progress": True}, {"overwrite": True}, {"resume": "auto", "epochs": 3}], ids=str
)
@pytest.mark.parametrize("attempt", [without_a_loss, with_an_unlabelled_probe, with_a_tracker_that_fails, without_data])
def test_a_run_that_never_starts_leaves_the_files_of_the_old_one(attempt, settings):
    rotatenet().supervise(**SHORT)
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        attempt(**settings)
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before


@pytest.mark.parametrize("kind", ["folder", "parent"])
def test_a_name_that_cannot_be_written_is_refused_before_training(kind):
    if kind == "folder":
        Path("taken.pt").mkdir()
        name = "taken"
    else:
        Path("file").write_text("text")
        name = "file/run"
    supervisor = rotatenet()
    before = weights_of(supervisor)
    with pytest.raises(OSError, match="Cannot write the checkpoint .*pass (a|another) name="):
        supervisor.supervise(**SHORT | {"name": name})
    assert_same(before, weights_of(supervisor))


# ---- signals ---------------------------------------------------------------------------------------------------------


class Signals(Tracker):
    """Sends a signal from one of its methods, in one epoch."""

    def __init__(self, method, number, epoch):
        self.method, self.number, self.at = method, number, epoch

    def measure(self, row):
        self._send("measure", row)
        return {}

    def epoch(self, row):
        self._send("epoch", row)

    def _send(self, method, row):
        if method == self.method and row["epoch"] == self.at:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number, expected", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
@pytest.mark.parametrize("method", ["measure", "epoch"])
def test_a_signal_after_the_last_step_is_raised_once_the_run_is_stored(method, number, expected):
    with pytest.raises(expected):
        rotatenet().supervise(**SHORT, trackers=[Signals(method, number, epoch=2)])
    assert read_checkpoint("run")["epoch"] == 2 and record()["state"] == "interrupted" and len(read_rows()) == 2


class OwnLoop(RotateNetSupervisor):
    """A loop that counts no steps."""

    stop_at, seen = None, 0

    def _epochs(self, epochs, train_loader, optimizer, lr_scheduler):
        for _ in range(epochs):
            for data in self.run.batches(train_loader):
                self._update(self._forward(data), optimizer, lr_scheduler)
                self.seen += 1
                if self.seen == self.stop_at:
                    os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_stops_a_loop_that_counts_no_steps_at_the_next_batch():
    supervisor = rotatenet(OwnLoop)
    supervisor.stop_at = 1
    with pytest.raises(KeyboardInterrupt):
        supervisor.supervise(**SHORT)
    assert supervisor.seen == 1
    assert_same(read_checkpoint("run")["model"], weights_of(supervisor))


def test_a_loop_that_counts_no_steps_is_stored_with_a_warning():
    supervisor = rotatenet(OwnLoop).supervise(**SHORT)
    assert any("did not call run.end_step()" in text for text in record()["warnings"])
    assert_same(read_checkpoint("run")["model"], weights_of(supervisor))


# ---- resuming --------------------------------------------------------------------------------------------------------


class StopsAt(RotateNetSupervisor):
    stop_at = None

    def _after_step(self):
        if self.step + 1 == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)


class Jittered(Dataset):
    """Images with noise from torch's random state, as a user's data set may draw it."""

    def __init__(self, n=20):
        self.images = tiny_images(n).float() / 255

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index] + 0.01 * torch.rand(3, 16, 16), 0


class OwnLoader(StopsAt):
    own_generator = False

    def _init_data_optimizer(self, *arguments):
        _, optimizer, lr_scheduler = super()._init_data_optimizer(*arguments)
        generator = torch.Generator().manual_seed(5) if self.own_generator else None
        return DataLoader(Jittered(), batch_size=4, shuffle=True, generator=generator), optimizer, lr_scheduler

    def _forward(self, data):
        torch.rand(3)  # as dropout would
        return super()._forward(data)


@pytest.mark.parametrize("own_generator", [False, True])
@pytest.mark.parametrize("stop_at", [3, 5, 7])  # in the first epoch, at its end, in the second
def test_resumed_run_with_a_users_shuffled_loader_equals_uninterrupted_run(stop_at, own_generator):
    def make(stop_at=None):
        supervisor = rotatenet(OwnLoader, n=20)
        supervisor.stop_at, supervisor.own_generator = stop_at, own_generator
        return supervisor

    settings = {"epochs": 3, "batch_size": 4, "progress": False}
    whole = make().supervise(name="whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        make(stop_at).supervise(name="parts", **settings)
    resumed = make().supervise(name="parts", resume=True, **settings)
    assert_same(weights_of(resumed), weights_of(whole))
    assert [row["loss"] for row in read_rows("parts")] == [row["loss"] for row in read_rows("whole")]


def multi_step(optimizer):
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 3], gamma=0.5)


def sequential(optimizer):
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=1)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, multi_step(optimizer)], milestones=[1])


@pytest.mark.parametrize("schedule", [multi_step, sequential])
def test_resumed_run_with_a_multi_step_schedule_equals_uninterrupted_run(schedule):
    settings = {"epochs": 2, "batch_size": 4, "lr_scheduler": schedule, "progress": False}
    whole = rotatenet().supervise(name="whole", **settings)
    stopped = rotatenet(StopsAt)
    stopped.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        stopped.supervise(name="parts", **settings)
    resumed = rotatenet().supervise(name="parts", resume=True, **settings)
    assert_same(weights_of(resumed), weights_of(whole))
    assert resumed.run.optimizer.param_groups[0]["lr"] == whole.run.optimizer.param_groups[0]["lr"]


class Counts(Tracker):
    def __init__(self, start):
        self.value = start

    def epoch(self, row):
        self.value += 1

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def test_two_trackers_of_one_class_keep_their_own_states():
    rotatenet().supervise(**SHORT, trackers=[Counts(0), Counts(100)])
    resumed = [Counts(-1), Counts(-1)]
    rotatenet().supervise(**SHORT | {"epochs": 3}, resume=True, trackers=resumed)
    assert [tracker.value for tracker in resumed] == [2, 102]  # stored before the second epoch() was called


class Fails(Tracker):
    def epoch(self, row):
        raise RuntimeError("the server is gone")


def test_every_stored_epoch_has_a_row_even_if_a_tracker_fails():
    with pytest.raises(RuntimeError, match="the server is gone"):
        rotatenet().supervise(**SHORT, trackers=[Fails()])
    assert [row["epoch"] for row in read_rows()] == ["1"] and read_checkpoint("run")["epoch"] == 1


@pytest.mark.parametrize(
    "garbage", [b"\xff\xfe\x00", b"epoch,loss\n1,2,3,4\n\n\x00\n", "epoch\n²\n1\n".encode(), b""], ids=repr
)
def test_a_damaged_csv_does_not_stop_a_resumed_run(garbage):
    rotatenet().supervise(**SHORT)
    Path("run.csv").write_bytes(garbage)
    rotatenet().supervise(**SHORT | {"epochs": 3}, resume=True)
    assert read_rows()[-1]["epoch"] == "3"


@pytest.mark.parametrize("key", ["step", "optimizer", "settings", "random", "trackers", "seed"])
def test_resume_refuses_a_file_that_lacks_a_part(key):
    rotatenet().supervise(**SHORT)
    stored = read_checkpoint("run")
    del stored[key]
    torch.save(stored, "run.pt")
    with pytest.raises(ValueError, match=f"has no {key}"):
        rotatenet().supervise(**SHORT | {"epochs": 3}, resume=True)


# ---- steps, losses and metrics ---------------------------------------------------------------------------------------


class Shrinks(StopsAt):
    """Trains on half of the images from the second epoch on."""

    def _before_epoch(self, epoch):
        self.seen = [*getattr(self, "seen", []), self.run.progress]
        if epoch:
            self.run.sampler.set_places(torch.arange(8))


@pytest.mark.parametrize("stop_at", [None, 4, 5, 6])
def test_progress_follows_the_places_of_the_sampler_and_ends_at_1(stop_at):
    supervisor = rotatenet(Shrinks)
    supervisor.stop_at = stop_at
    settings = {"epochs": 3, "batch_size": 4, "name": "run", "progress": False}
    if stop_at:
        with pytest.raises(KeyboardInterrupt):
            supervisor.supervise(**settings)
        supervisor = rotatenet(Shrinks).supervise(**settings, resume=True)
    else:
        supervisor.supervise(**settings)
    assert supervisor.run.total_steps == supervisor.step == 8 and supervisor.run.progress == 1
    again = rotatenet(Shrinks).supervise(**settings, resume=True)
    assert again.step == again.run.total_steps == 8


@pytest.mark.parametrize("name", ["loss", "epoch", "step", "lr", "knn", "feature_x", "embedding_std"])
def test_a_metric_with_the_name_of_a_column_is_refused(name):
    with pytest.raises(ValueError, match=rf"note\('{name}', ...\): .* is a column of every run"):
        rotatenet().note(name, 1.0)


class Diverges(RotateNetSupervisor):
    at = 0

    def _forward(self, data):
        return super()._forward(data) * (torch.nan if self.step >= self.at else 1)


def diverging(at):
    supervisor = rotatenet(Diverges)
    supervisor.at = at
    return supervisor


def test_a_loss_that_is_not_finite_tells_whether_anything_is_stored():
    with pytest.raises(FloatingPointError, match="nothing has been stored yet"):
        diverging(0).supervise(**SHORT)
    assert not Path("run.pt").exists()
    with pytest.raises(FloatingPointError, match="run.pt keeps the last good epoch"):
        diverging(2).supervise(**SHORT)
    with pytest.raises(FloatingPointError, match="run.pt keeps the last good epoch"):
        diverging(2).supervise(**SHORT, resume=True)


# ---- what comes from a user ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["augment", "collate_fn"])
def test_views_of_another_number_of_images_are_refused(how):
    if how == "augment":
        arguments = {"augment": lambda images: [images, images[:3]]}
    else:
        arguments = {
            "collate_fn": lambda items: ([torch.stack([item.image for item in items[:k]]) for k in (8, 3)], None)
        }
    with pytest.raises(ValueError, match=r"views of \[8, 3\] images from a batch of 8"):
        rotatenet(BYOLSupervisor, **arguments).supervise(**SHORT)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="returned a batch without images"):
        rotatenet(collate_fn=lambda items: torch.zeros(0, 3, 16, 16)).supervise(**SHORT)


class WithoutLength:
    def __iter__(self):
        yield tiny_images(4)


class OwnIterable(RotateNetSupervisor):
    def _init_data_optimizer(self, *arguments):
        return WithoutLength(), *super()._init_data_optimizer(*arguments)[1:]


def test_a_loader_without_a_length_is_refused():
    with pytest.raises(TypeError, match=r"the loader is a WithoutLength, which has no len\(\)"):
        rotatenet(OwnIterable).supervise(**SHORT)


class Broken:
    encoding = "utf-8"

    def write(self, text):
        raise OSError("broken pipe")

    def flush(self):
        raise OSError("broken pipe")

    def isatty(self):
        return False


@pytest.mark.parametrize("output", [Broken(), None], ids=["broken", "closed"])
def test_a_closed_output_does_not_end_a_run(output, monkeypatch):
    monkeypatch.setattr(sys, "stdout", output)
    supervisor = rotatenet().supervise(**SHORT | {"progress": True})
    assert supervisor.step == 4 and record()["state"] == "finished"


def test_a_trained_supervisor_can_be_pickled_and_copied():
    supervisor = rotatenet().supervise(**SHORT | {"progress": True})
    for other in (pickle.loads(pickle.dumps(supervisor)), copy.deepcopy(supervisor)):
        assert_same(weights_of(other), weights_of(supervisor))
        other.supervise(**SHORT | {"name": "other", "epochs": 1})
        assert other.step == 2
    assert supervisor.run is not None and supervisor.step == 4


def test_numbers_of_numpy_are_settings_and_are_stored_as_plain_numbers():
    settings = {"lr": np.float64(1e-3), "epochs": np.int64(1), "batch_size": np.int32(8), "seed": np.int64(3)}
    supervisor = rotatenet().supervise(**SHORT | settings)
    stored = read_checkpoint("run")
    assert stored["settings"]["lr"] == 1e-3 and type(stored["settings"]["lr"]) is float
    assert stored["seed"] == 3 and type(stored["seed"]) is int and type(supervisor.run.settings.epochs) is int
    assert type(record()["settings"]["epochs"]) is int


class NormBackbone(TinyBackbone):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def forward(self, images):
        return self.norm(super().forward(images).mean(dim=(2, 3)))


def test_the_data_set_is_never_embedded_in_batches_of_one_image(monkeypatch):
    from superself import PIRLSupervisor, joint_embedding

    monkeypatch.setattr(joint_embedding, "LARGEST_BATCH", 4)
    sizes = []
    backbone = NormBackbone()
    supervisor = PIRLSupervisor(tiny_images(13), backbone=backbone, seed=0).supervise(**SHORT | {"epochs": 1})
    backbone.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    assert supervisor._embed_data_set().shape[0] == 13 and sizes == [4, 3, 3, 3]
