"""Killed at any moment and started again until it is done, a run ends as if nothing had happened."""

from __future__ import annotations

import csv
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

import superself
from superself.training import read_checkpoint

from cases import CASES, tiny_images

NAMES = ("RotateNet", "MomentumContrast", "InstanceDiscrimination", "BiGan")
FOUR = [next(case for case in CASES if case.algorithm.__name__ == f"{name}Supervisor") for name in NAMES]
SETTINGS = {"epochs": 4, "batch_size": 4, "lr_scheduler": "cosine", "progress": False}  # 4 steps per epoch

TIMES = ("seconds", "images_per_second", "waiting_share")
four = pytest.mark.parametrize("case", FOUR, ids=NAMES)


def train(case, name="run", seconds_per_step=0.0, save_every=None, **settings):
    class Slow(case.algorithm):
        def _after_step(self):
            time.sleep(seconds_per_step / 2)  # in the middle of a step, where the state is incomplete
            super()._after_step()
            time.sleep(seconds_per_step / 2)

    supervisor = Slow(tiny_images(), **{"backbone": case.backbone(), "seed": 0, **case.arguments})
    return supervisor.supervise(name=name, save_every=save_every, **{**SETTINGS, **settings})


def killed_after(seconds, work):
    """Runs ``work`` in a copy of this process and kills it after ``seconds``; whether it had finished."""
    child = os.fork()  # torch and superself are imported already
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    timer = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
    timer.start()
    _, status = os.waitpid(child, 0)
    timer.cancel()
    assert status in (0, signal.SIGKILL), "the run ended with an error of its own"
    return status == 0


def assert_equal(one, other, place="state"):
    assert type(one) is type(other), place
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_equal(one[key], other[key], f"{place}[{key!r}]")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), place
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{place}[{number}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    else:
        assert one == other, place


def without_times(value):
    """What does not depend on the clock."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def rows(name):
    with open(f"{name}.csv", newline="") as file:
        return without_times(list(csv.DictReader(file)))


def assert_same_run(name, other):
    stored = [read_checkpoint(part) for part in (name, other)]
    for state in stored:
        state["settings"] = {k: v for k, v in state["settings"].items() if k not in ("name", "resume", "save_every")}
        state["trackers"] = [(kind, without_times(part)) for kind, part in state["trackers"]]
    assert_equal(*stored)
    assert rows(name) == rows(other)


def kill_until_done(case, kills, longest, save_every, seconds_per_step, seed=0, **settings):
    """How many starts were killed until one was done; after ``kills`` of them, the next may finish."""
    draw, killed = random.Random(seed), 0

    def work():
        train(case, "killed", seconds_per_step, save_every, resume="auto", **settings)

    while not killed_after(draw.uniform(0, longest) if killed < kills else 60, work):
        killed += 1
    return killed


@four
def test_killed_at_random_and_resumed_equals_uninterrupted(case):
    train(case, "whole")
    killed = kill_until_done(case, kills=5, longest=0.3, save_every=0.01, seconds_per_step=0.05)  # 16 steps
    assert killed >= 2
    assert_same_run("killed", "whole")


@pytest.mark.thorough
@four
@pytest.mark.parametrize("save_every", [0.01, None])
def test_killed_up_to_thirty_times_at_random_and_resumed_equals_uninterrupted(case, save_every):
    train(case, "whole", epochs=20)
    killed = kill_until_done(
        case, kills=30, longest=0.6, save_every=save_every, seconds_per_step=0.05, seed=1, epochs=20
    )
    assert killed >= 10
    assert_same_run("killed", "whole")


@four
def test_a_run_makes_progress_even_if_every_start_is_killed_within_the_first_epoch(case):
    """Two starts that each live for three of the eight steps of the epoch."""

    class Killed(case.algorithm):
        def _after_step(self):
            super()._after_step()
            if self.step == began + 3:  # the end of this step is not reached
                os.kill(os.getpid(), signal.SIGKILL)

    settings = {**SETTINGS, "epochs": 1, "batch_size": 2, "name": "run"}
    steps = []
    for _ in range(2):
        began = read_checkpoint("run")["step"] if Path("run.pt").exists() else 0

        def work():
            supervisor = Killed(tiny_images(), **{"backbone": case.backbone(), "seed": 0, **case.arguments})
            supervisor.supervise(**settings, save_every=1e-6, resume="auto")

        assert not killed_after(60, work)
        steps.append(read_checkpoint("run")["step"])
    assert steps == [3, 6]


def test_a_kill_right_after_a_checkpoint_loses_no_row():
    case = FOUR[0]
    train(case, "whole")

    def work():
        write = superself.training.run.write_checkpoint

        def killed_at_second(name, state):
            write(name, state)
            if state["epoch"] == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        superself.training.run.write_checkpoint = killed_at_second
        train(case, "killed")

    assert not killed_after(60, work)
    train(case, "killed", resume=True)
    assert_same_run("killed", "whole")
