"""Signals to the process and to its whole group: the step is finished, the run stored, and the exit status says why."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import superself
from superself.training import interrupt, read_checkpoint

from cases import CASES, tiny_images

NAMES = ("RotateNet", "MomentumContrast", "InstanceDiscrimination", "BiGan")
FOUR = [next(case for case in CASES if case.algorithm.__name__ == f"{name}Supervisor") for name in NAMES]
SETTINGS = {"epochs": 2, "batch_size": 4, "name": "run", "progress": False}  # 4 steps per epoch
TESTS = Path(__file__).parents[1]

four = pytest.mark.parametrize("case", FOUR, ids=NAMES)


def make(case, cls=None):
    cls = cls or case.algorithm
    return cls(tiny_images(), **{"backbone": case.backbone(), "seed": 0, **case.arguments})


def sends(case, number, at, where="_after_step"):
    """A supervisor that gets a signal in the step ``at``, counted from 0."""

    class Sends(case.algorithm):
        def _forward(self, data):
            if where == "_forward" and self.step == at:
                os.kill(os.getpid(), number)
            return super()._forward(data)

        def _after_step(self):
            if where == "_after_step" and self.step == at:
                os.kill(os.getpid(), number)
            super()._after_step()

    return make(case, Sends)


def assert_same_weights(name, other):
    one, two = (read_checkpoint(part)["model"] for part in (name, other))
    for key in one:
        assert torch.equal(one[key], two[key]), key


@four
@pytest.mark.parametrize("where", ["_forward", "_after_step"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_stopped_in_the_middle_of_a_step_and_resumed_equals_uninterrupted(case, where, number):
    make(case).supervise(**SETTINGS | {"name": "whole"})
    with pytest.raises(SystemExit) as stopped:
        sends(case, number, 5, where).supervise(**SETTINGS)
    assert stopped.value.code == 128 + number and read_checkpoint("run")["step"] == 6
    make(case).supervise(**SETTINGS, resume=True)
    assert_same_weights("run", "whole")


@four
def test_sigusr1_stores_the_run_which_continues(case, monkeypatch):
    write, steps = superself.training.run.write_checkpoint, []
    monkeypatch.setattr(
        superself.training.run,
        "write_checkpoint",
        lambda name, state: (steps.append(state["step"]), write(name, state)),
    )
    sends(case, signal.SIGUSR1, 1).supervise(**SETTINGS)
    assert steps == [2, 4, 8]


def test_the_first_ctrl_c_is_acknowledged_at_once(capsys):
    seen = []

    class Looks(superself.RotateNetSupervisor):
        def _after_step(self):
            os.kill(os.getpid(), signal.SIGINT)
            seen.append(capsys.readouterr().out)

    with pytest.raises(KeyboardInterrupt):
        make(FOUR[0], Looks).supervise(**SETTINGS | {"progress": True})
    assert "SIGINT: finishing the step, then saving; send it again to stop at once." in seen[0]


def test_a_second_signal_stops_within_the_step_and_stores_nothing(monkeypatch):
    monkeypatch.setattr(interrupt, "REPEATED", 0.0)

    class Hangs(superself.RotateNetSupervisor):
        def _forward(self, data):
            if self.step == 5:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
                raise AssertionError("not reached")
            return super()._forward(data)

    with pytest.raises(KeyboardInterrupt):
        make(FOUR[0], Hangs).supervise(**SETTINGS)
    assert read_checkpoint("run")["step"] == 4


def test_a_signal_with_a_full_disk_still_ends_the_run_with_its_status(monkeypatch):
    def full(name, state):
        raise OSError("no space left on device")

    monkeypatch.setattr(superself.training.run, "write_checkpoint", full)
    with (
        pytest.raises(SystemExit) as stopped,
        pytest.warns(UserWarning, match="step 2 could not be saved .*nothing has"),
    ):
        sends(FOUR[0], signal.SIGTERM, 1).supervise(**SETTINGS)
    assert stopped.value.code == 143


# ---- the whole group, with loader workers ----------------------------------------------------------------------------

SCRIPT = """
    import sys, time
    import superself
    from cases import TinyBackbone

    class Slow(getattr(superself, sys.argv[1])):
        def _after_step(self):
            if self.step == 0:
                print("started", flush=True)
            time.sleep(0.01)
            super()._after_step()

    if __name__ == "__main__":
        supervisor = Slow("photos", backbone=TinyBackbone(), seed=0, memory_limit=0)
        supervisor.supervise(epochs=200, batch_size=4, num_workers=2, name="run", progress=False, save_every=None)
"""


def write_photos(count=40):
    Path("photos").mkdir()
    draw = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(f"photos/{number}.png")


def start(algorithm="RotateNetSupervisor"):
    """A run in a session of its own, once it has done a step."""
    Path("script.py").write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "script.py", algorithm],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    line = process.stdout.readline()
    assert line == "started\n", process.communicate()[1]
    return process


def members(session):
    """The processes of a session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def stop_group(seconds, number=signal.SIGTERM, algorithm="RotateNetSupervisor"):
    process = start(algorithm)
    time.sleep(seconds)
    before = len(members(process.pid))
    for worker in set(members(process.pid)) - {process.pid}:
        os.kill(worker, signal.SIGTERM)  # not from its parent
    time.sleep(0.1)
    assert len(members(process.pid)) == before
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    return process, before, errors


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")


@needs_proc
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_the_group_is_stored_although_loader_workers_get_it_too(number, status):
    """Takes as long as importing the package in a new process."""
    write_photos()
    process, before, errors = stop_group(0.3, number)
    assert process.returncode == status, errors
    assert before == 3 and members(process.pid) == []  # two workers
    assert read_checkpoint("run")["step"] > 1 and "Traceback" not in errors and "Warning" not in errors


@needs_proc
@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_a_signal_to_the_group_at_random_moments_is_always_stored(name):
    write_photos()
    draw = random.Random(0)
    for attempt in range(7):
        process, _, errors = stop_group(
            draw.uniform(0, 1.0), [signal.SIGTERM, signal.SIGHUP][attempt % 2], f"{name}Supervisor"
        )
        assert process.returncode == 128 + [signal.SIGTERM, signal.SIGHUP][attempt % 2], errors
        assert read_checkpoint("run")["step"] >= 1 and members(process.pid) == []
        Path("run.pt").unlink()


@needs_proc
@pytest.mark.thorough  # an idle worker looks for its parent every five seconds
def test_workers_end_when_their_parent_is_killed():
    write_photos()
    process = start()
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 15
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert members(process.pid) == []


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="a worker cannot know who sent a signal")
def test_a_worker_ignores_what_its_parent_handles_unless_the_parent_sends_it():
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        interrupt.leave_signals_to_parent()
        os.write(tell, b"1")
        time.sleep(60)
        os._exit(99)
    os.read(ready, 1)
    others = [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU, signal.SIGTERM]
    for number in others:
        subprocess.run(["/bin/kill", f"-{number.value}", str(child)], check=True)
    time.sleep(0.05)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)  # it is still there
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---- without a main thread, and within another run --------------------------------------------------------------------


def test_training_in_a_thread_gives_the_same_weights():
    make(FOUR[0]).supervise(**SETTINGS | {"name": "main"})
    errors = []

    def work():
        try:
            make(FOUR[0]).supervise(**SETTINGS | {"name": "thread"})
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []
    assert_same_weights("main", "thread")


class TrainsAnother(superself.Tracker):
    def __init__(self, number=None):
        self.number = number

    def epoch(self, row):
        if row["epoch"] == 1:
            inner = make(FOUR[0]) if self.number is None else sends(FOUR[0], self.number, 1)
            inner.supervise(**SETTINGS | {"name": f"inner{row['epoch']}"})


def test_a_run_within_a_run_changes_nothing_in_the_outer_one():
    make(FOUR[0]).supervise(**SETTINGS | {"name": "plain"})
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    make(FOUR[0]).supervise(**SETTINGS, trackers=[TrainsAnother()])
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == handlers
    assert read_checkpoint("run")["epoch"] == 2 and read_checkpoint("inner1")["epoch"] == 2


def test_a_signal_within_an_inner_run_ends_both_and_stores_both():
    with pytest.raises(SystemExit):
        make(FOUR[0]).supervise(**SETTINGS, trackers=[TrainsAnother(signal.SIGTERM)])
    assert read_checkpoint("inner1")["step"] == 2 and read_checkpoint("run")["epoch"] == 1


def test_the_same_supervisor_cannot_train_within_its_own_run():
    supervisor = make(FOUR[0])

    class Again(superself.Tracker):
        def epoch(self, row):
            supervisor.supervise(**SETTINGS | {"name": "other"})

    with pytest.raises(RuntimeError, match=r"within a run of the same supervisor \(run\)"):
        supervisor.supervise(**SETTINGS, trackers=[Again()])
    supervisor.supervise(**SETTINGS | {"name": "after"})  # once the run has ended
    assert read_checkpoint("after")["epoch"] == 2


def test_supervise_twice_continues_from_the_same_weights_with_no_hook_left():
    from torch.optim import optimizer

    hooks = len(optimizer._global_optimizer_pre_hooks)
    supervisor = make(FOUR[0]).supervise(**SETTINGS)
    first = read_checkpoint("run")["model"]
    supervisor.supervise(**SETTINGS | {"name": "second"})
    assert len(optimizer._global_optimizer_pre_hooks) == hooks
    assert any(not torch.equal(first[key], value) for key, value in read_checkpoint("second")["model"].items())


class DiesOfTheSignal(torch.utils.data.Dataset):
    """What a user's own loader does when its workers get the signal as well."""

    reads = 0

    def __len__(self):
        return 16

    def __getitem__(self, index):
        self.reads += 1
        if self.reads == 22:
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")
        return tiny_images()[index], 0


class OwnLoader(superself.RotateNetSupervisor):
    def _init_data_optimizer(self, *arguments):
        loader = torch.utils.data.DataLoader(DiesOfTheSignal(), batch_size=4)
        return loader, *super()._init_data_optimizer(*arguments)[1:]


def test_a_users_loader_that_dies_of_the_signal_costs_no_step():
    with pytest.raises(SystemExit) as stopped, pytest.warns(UserWarning, match="after the signal: .*killed by signal"):
        make(FOUR[0], OwnLoader).supervise(**SETTINGS)
    assert stopped.value.code == 143 and read_checkpoint("run")["step"] == 5
