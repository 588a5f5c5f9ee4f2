"""What can fail later fails before the first step; what fails within a run costs no complete step."""

from __future__ import annotations

import csv
import gc
import os
import random
import signal
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import superself
from superself import Tracker
from superself.training import read_checkpoint
from superself.training import run as run_module

from cases import CASES, TinyBackbone, tiny_images

NAMES = ("RotateNet", "MomentumContrast", "InstanceDiscrimination", "BiGan")
FOUR = [next(case for case in CASES if case.algorithm.__name__ == f"{name}Supervisor") for name in NAMES]
SETTINGS = {"epochs": 2, "batch_size": 4, "name": "run", "progress": False}  # 4 steps per epoch

four = pytest.mark.parametrize("case", FOUR, ids=NAMES)


def make(case=FOUR[0], cls=None, dataset=None, **arguments):
    dataset = tiny_images() if dataset is None else dataset
    return (cls or case.algorithm)(dataset, **{"backbone": case.backbone(), "seed": 0, **case.arguments, **arguments})


def state_of(supervisor):
    return {name: tensor.clone() for name, tensor in supervisor.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def labelled(images, labels=None):
    return TensorDataset(images, torch.arange(len(images)) % 2 if labels is None else labels)


# ---- before the first step -------------------------------------------------------------------------------------------


@four
@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(
    "probe, message",
    [
        (labelled(tiny_images(8, channels=1)), "channels"),
        (labelled(tiny_images(8), torch.rand(8)), "one class per image"),
        (labelled(tiny_images(8), torch.zeros(8, 3, dtype=torch.int64)), "one class per image"),
    ],
    ids=["channels", "regression", "multi-label"],
)
def test_a_probe_that_cannot_be_measured_fails_before_the_first_step(case, resumed, probe, message):
    if resumed:
        make(case).supervise(**SETTINGS | {"epochs": 1})
    files = sorted(Path().iterdir())
    supervisor = make(case)
    before = None if resumed else state_of(supervisor)
    with pytest.raises(ValueError, match=message):
        supervisor.supervise(**SETTINGS, probe=(probe, labelled(tiny_images(8))), probe_every=2, resume=resumed)
    assert_same(before or read_checkpoint("run")["model"], state_of(supervisor))
    assert sorted(Path().iterdir()) == files and supervisor.step == (4 if resumed else 0)


def test_trying_the_probe_changes_no_weight():
    plain = make().supervise(**SETTINGS)
    probe = labelled(tiny_images(40))
    probed = make().supervise(**SETTINGS | {"name": "probed"}, probe=(probe, probe), probe_every=99)
    assert_same(state_of(plain), state_of(probed))


@pytest.mark.parametrize(
    "place, part, message",
    [
        (0, 3, "a int as loader, which cannot be iterated over"),
        (1, None, "None as optimizer, which has no step"),
        (2, None, "None as lr_scheduler, which has no step"),
        (2, [1, 2], "a list as lr_scheduler"),
    ],
)
def test_parts_that_cannot_train_are_refused_before_the_first_step(place, part, message):
    class Returns(superself.RotateNetSupervisor):
        def _init_data_optimizer(self, *arguments):
            parts = list(super()._init_data_optimizer(*arguments))
            parts[place] = part
            return tuple(parts)

    with pytest.raises(TypeError, match=message):
        make(cls=Returns).supervise(**SETTINGS)
    assert list(Path().iterdir()) == []


class OnlyEpoch:
    def epoch(self, row):
        pass


class MeasuresNothing(Tracker):
    def measure(self, row):
        pass


def test_a_tracker_without_all_methods_is_refused_before_the_first_step():
    with pytest.raises(
        TypeError, match=r"a OnlyEpoch, which has no start, baseline, step, measure, .*subclass of superself.Tracker"
    ):
        make().supervise(**SETTINGS, trackers=[OnlyEpoch()])
    make().supervise(**SETTINGS, trackers=[MeasuresNothing()])


# ---- a disk that fails -----------------------------------------------------------------------------------------------


@four
def test_a_disk_that_becomes_read_only_stops_no_training_and_the_end_says_what_is_missing(case, monkeypatch):
    write = run_module.write_checkpoint

    def read_only(name, state):
        if state["epoch"] > 1:
            raise OSError("read-only file system")
        return write(name, state)

    whole = make(case).supervise(**SETTINGS | {"epochs": 3, "name": "whole"})
    monkeypatch.setattr(run_module, "write_checkpoint", read_only)
    supervisor = make(case)
    with (
        pytest.warns(UserWarning, match="epoch 2 could not be saved"),
        pytest.raises(OSError, match="run.pt keeps step 4, and step 12 is only in memory.*read-only file system"),
    ):
        supervisor.supervise(**SETTINGS | {"epochs": 3})
    assert_same(state_of(whole), state_of(supervisor))
    assert read_checkpoint("run")["epoch"] == 1


def test_the_error_of_a_user_is_shown_although_saving_fails_too(monkeypatch):
    def fails(name, state):
        raise OSError("read-only file system")

    class Breaks(superself.RotateNetSupervisor):
        def _forward(self, data):
            if self.step == 2:
                raise KeyError("mine")
            return super()._forward(data)

    class CannotEnd(Tracker):
        def end(self, state):
            raise RuntimeError("the server is gone")

    monkeypatch.setattr(run_module, "write_checkpoint", fails)
    with pytest.warns(UserWarning) as told, pytest.raises(KeyError, match="mine"):
        make(cls=Breaks).supervise(**SETTINGS, trackers=[CannotEnd()])
    texts = [str(warning.message) for warning in told]
    assert any("step 2 could not be saved (read-only file system)" in text for text in texts)
    assert any("the server is gone" in text for text in texts)


def test_an_error_at_the_end_of_a_tracker_is_raised_after_all_have_ended():
    class CannotEnd(Tracker):
        def end(self, state):
            raise RuntimeError("the server is gone")

    with pytest.raises(RuntimeError, match="the server is gone"):
        make().supervise(**SETTINGS, trackers=[CannotEnd(), CannotEnd()])
    assert yaml.safe_load(Path("run.yaml").read_text())["state"] == "finished"


# ---- an error within an epoch ----------------------------------------------------------------------------------------


class Dropout(nn.Module):
    """Draws from torch, numpy and Python in every forward pass."""

    def forward(self, x):
        return x * (1 + 1e-3 * (torch.rand(()) + random.random() + np.random.rand()).item())


class Dies(Exception):
    pass


def raising(case, where, at):
    """A supervisor that fails at one place of the step ``at``, counted from 0, and a maker of one that does not."""

    class Fails(case.algorithm):
        def _forward(self, data):
            loss = super()._forward(data)
            self.fail("_forward")
            if where == "backward" and self.step == at:
                loss.register_hook(lambda gradient: self.fail("backward"))
            return loss

        def _update(self, loss, optimizer, lr_scheduler):
            super()._update(loss, optimizer, lr_scheduler)
            self.fail("_update")

        def _after_step(self):
            self.fail("_after_step")
            super()._after_step()

        def fail(self, place):
            if place == where and self.step == at:
                raise Dies(place)

    def backbone():
        tiny = case.backbone()
        return nn.Sequential(tiny, Dropout()) if isinstance(tiny, TinyBackbone) else tiny

    return make(case, Fails, backbone=backbone()), make(case, backbone=backbone())


def means(name):
    """The rows of a run without what depends on the clock."""
    with open(f"{name}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second", "waiting_share")} for row in rows
    ]


@four
@pytest.mark.parametrize("at", [2, 7])
@pytest.mark.parametrize("where", ["_forward", "backward"])
def test_an_error_before_the_optimizer_steps_costs_no_step(case, where, at):
    failing, sound = raising(case, where, at)
    with pytest.raises(Dies):
        failing.supervise(**SETTINGS)
    assert read_checkpoint("run")["step"] == at
    whole = raising(case, where, None)[1].supervise(**SETTINGS | {"name": "whole"})
    assert_same(state_of(sound.supervise(**SETTINGS, resume=True)), state_of(whole))
    assert means("run") == means("whole")


@four
@pytest.mark.parametrize("where", ["_update", "_after_step"])
def test_an_error_after_the_optimizer_stepped_leaves_the_last_file(case, where):
    failing, sound = raising(case, where, 6)
    with pytest.raises(Dies):
        failing.supervise(**SETTINGS)
    assert read_checkpoint("run")["step"] == 4
    whole = raising(case, where, None)[1].supervise(**SETTINGS | {"name": "whole"})
    assert_same(state_of(sound.supervise(**SETTINGS, resume=True)), state_of(whole))


def test_a_random_source_first_used_in_the_step_that_fails_leaves_the_last_file():
    class Fails(superself.RotateNetSupervisor):
        def _forward(self, data):
            if self.step == 6:
                np.random.rand()
                raise Dies
            return super()._forward(data)

    with pytest.raises(Dies):
        make(cls=Fails).supervise(**SETTINGS)
    assert read_checkpoint("run")["step"] == 4


class CountsMeasures(Tracker):
    value = 0

    def measure(self, row):
        self.value += 1
        return {}

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


class FailsIn(Tracker):
    def __init__(self, method):
        self.method = method

    def step(self, row):
        self.fail("step", row)

    def measure(self, row):
        self.fail("measure", row)
        return {}

    def fail(self, method, row):
        if method == self.method and row["epoch"] == 2:
            raise Dies


@four
@pytest.mark.parametrize("method", ["step", "measure"])
def test_a_tracker_that_fails_costs_no_step(case, method, monkeypatch):
    monkeypatch.setattr(run_module, "REFRESH_SECONDS", 0.0)
    settings = SETTINGS | {"epochs": 3}
    whole = make(case).supervise(**settings | {"name": "whole"})
    with pytest.raises(Dies):
        make(case).supervise(**settings, trackers=[CountsMeasures(), FailsIn(method)])
    assert read_checkpoint("run")["step"] == (5 if method == "step" else 8)
    counts = CountsMeasures()
    assert_same(state_of(make(case).supervise(**settings, resume=True, trackers=[counts])), state_of(whole))
    assert counts.value == 3  # the epoch that was measured again counts once


class Unreadable(Dataset):
    """Random images, one of which cannot be read at the second time."""

    reads, fails = 0, True

    def __len__(self):
        return 16

    def __getitem__(self, index):
        self.reads += 1
        value = torch.rand(())  # drawn before the error
        if self.fails and self.reads == 16 + 6:
            raise Dies
        return tiny_images()[index].float() / 255 + 0.01 * value, 0


def own_loader(fails):
    class Own(superself.RotateNetSupervisor):
        def _init_data_optimizer(self, *arguments):
            data = Unreadable()
            data.fails = fails
            return DataLoader(data, batch_size=4, shuffle=True), *super()._init_data_optimizer(*arguments)[1:]

    return make(cls=Own)


def test_a_loader_that_fails_costs_no_step():
    whole = own_loader(False).supervise(**SETTINGS | {"name": "whole"})
    with pytest.raises(Dies):
        own_loader(True).supervise(**SETTINGS)
    assert read_checkpoint("run")["step"] == 5
    assert_same(state_of(own_loader(False).supervise(**SETTINGS, resume=True)), state_of(whole))


class KillsItsWorker(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        if torch.utils.data.get_worker_info() is not None and Path("kill").exists() and random.random() < 0.3:
            os.kill(os.getpid(), signal.SIGKILL)
        return tiny_images()[index], 0


class WritesKill(superself.RotateNetSupervisor):
    """The workers of the second epoch are killed; the error arrives in the middle of a step or between two."""

    def _before_epoch(self, epoch):
        if epoch == 1 and not self.run.settings.resume:
            Path("kill").touch()


def test_a_dead_worker_leaves_a_file_from_which_the_run_continues():
    settings = SETTINGS | {"num_workers": 1}
    whole = make(dataset=KillsItsWorker(), memory_limit=0).supervise(**settings | {"name": "whole"})
    with pytest.raises(RuntimeError, match="[Ww]orker"):
        make(cls=WritesKill, dataset=KillsItsWorker(), memory_limit=0).supervise(**settings)
    Path("kill").unlink()
    assert read_checkpoint("run")["step"] >= 4
    assert_same(
        state_of(make(dataset=KillsItsWorker(), memory_limit=0).supervise(**settings, resume=True)), state_of(whole)
    )


# ---- memory ----------------------------------------------------------------------------------------------------------


@four
@pytest.mark.parametrize(
    "error, kind",
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), torch.cuda.OutOfMemoryError),
        (MemoryError(), MemoryError),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), MemoryError),
    ],
    ids=["accelerator", "python", "cpu"],
)
def test_running_out_of_memory_names_what_to_reduce_and_costs_no_step(case, error, kind):
    class Fails(case.algorithm):
        def _forward(self, data):
            if self.step == 3:
                raise error
            return super()._forward(data)

    supervisor = make(case, Fails)
    views = "2 views" if supervisor.n_views == 2 else "1 view"
    with pytest.raises(
        kind, match=f"batch_size=4, {views} of each image and 16 x 16 pixels.*view_size=.*micro_batch= or acc"
    ):
        supervisor.supervise(**SETTINGS)
    assert read_checkpoint("run")["step"] == 3


def test_running_out_of_memory_in_the_pass_that_estimates_the_time_is_explained(capsys):
    class Fails(superself.RotateNetSupervisor):
        def _forward(self, data):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError, match="batch_size=4"):
        make(cls=Fails).supervise(**SETTINGS | {"progress": True})
    assert list(Path().iterdir()) == []


# ---- names and long runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["with space", "Grüße/läuft", "two\nlines", "~run", "dots.1.2", "-dash", "%s{}"])
def test_any_name_can_be_stored_and_resumed(name):
    make().supervise(**SETTINGS | {"name": name, "epochs": 1})
    resumed = make().supervise(**SETTINGS | {"name": name, "progress": True}, resume=True)
    assert resumed.step == 8 and read_checkpoint(name)["epoch"] == 2


def test_a_folder_that_vanishes_is_made_again():
    class Removes(superself.RotateNetSupervisor):
        def _before_epoch(self, epoch):
            if epoch == 1:
                for path in Path("deep").iterdir():
                    path.unlink()
                Path("deep").rmdir()

    make(cls=Removes).supervise(**SETTINGS | {"name": "deep/run"})
    assert read_checkpoint("deep/run")["epoch"] == 2


def run_epochs(epochs):
    """What a process holds before and after a run: threads, open files, tensors, hooks."""
    supervisor = make(dataset=tiny_images(4))
    counts = []

    class Counts(Tracker):
        def epoch(self, row):
            if row["epoch"] in (epochs // 3, epochs):
                gc.collect()
                tensors = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
                counts.append((threading.active_count(), len(os.listdir("/proc/self/fd")), tensors))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        supervisor.supervise(**SETTINGS | {"epochs": epochs}, trackers=[Counts()], save_every=0.01)
    return counts


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
@pytest.mark.parametrize("epochs", [12, pytest.param(300, marks=pytest.mark.thorough)])
def test_long_runs_keep_no_more_threads_files_or_tensors(epochs):
    early, late = run_epochs(epochs)
    assert late == early
