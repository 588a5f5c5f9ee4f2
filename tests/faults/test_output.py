"""Outputs that are closed, full, broken or cannot encode a character never end a run."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import superself
from superself import Tracker
from superself.basics import output
from superself.basics.output import prepare_standard_streams, print_line
from superself.training import read_checkpoint

from cases import CASES, TinyBackbone, tiny_images
from processes import in_another_process

CASE = {case.algorithm.__name__: case for case in CASES}
FOUR = ["BiGanSupervisor", "InstanceDiscriminationSupervisor", "MomentumContrastSupervisor", "RotateNetSupervisor"]
PRINTS = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("output", {str(Path(output.__file__))!r})
output = importlib.util.module_from_spec(spec)
spec.loader.exec_module(output)
output.prepare_standard_streams()
for number in range(20000):
    output.print_line(f"line {{number}}, 5 µm, 图")
"""


def shell(command, script, **environment):
    """Exit status and stderr of a shell command in which $PYTHON is a Python that runs ``script``."""
    Path("script.py").write_text(script, encoding="utf-8")
    environment = {**os.environ, "PYTHON": f"{sys.executable} script.py", "PYTHONUNBUFFERED": "", **environment}
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], env=environment, capture_output=True)
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


BROKEN = ["$PYTHON | head -1", "$PYTHON > /dev/full", "$PYTHON >&-", "$PYTHON >&- 2>&-", "$PYTHON 2>&1 | head -1"]


@pytest.mark.parametrize("command", BROKEN)
def test_a_broken_output_changes_neither_the_exit_status_nor_stderr(command):
    status, _, errors = shell(command, PRINTS)
    assert (status, errors) == (0, "")


def test_prints_of_the_user_after_a_broken_pipe_do_not_fail_either():
    assert shell("$PYTHON | head -1", PRINTS + "print('done', flush=True)\n")[::2] == (0, "")


@pytest.mark.parametrize("environment", [{"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "ascii"}])
def test_characters_that_cannot_be_encoded_are_replaced(environment):
    status, out, errors = shell("$PYTHON | tail -1", PRINTS, PYTHONUTF8="0", **environment)
    assert (status, errors, out) == (0, "", "line 19999, 5 ?m, ?\n")


def test_a_log_on_a_disk_that_was_full_goes_on(monkeypatch):
    class Full(io.StringIO):
        full = True

        def write(self, text):
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    stream = Full()
    monkeypatch.setattr(sys, "stdout", stream)
    print_line("lost")
    stream.full = False
    print_line("written")
    assert stream.getvalue() == "written\n"


def test_closed_streams_become_silent(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, closed)
    prepare_standard_streams()
    print_line("text")
    print("text")
    assert sys.stdout is None and sys.stderr is None


def test_a_closed_descriptor_is_not_given_to_the_next_file():
    def train():
        for number in range(3):
            os.close(number)
        prepare_standard_streams()
        assert os.open("file", os.O_CREAT | os.O_WRONLY) > 2

    assert in_another_process(train) == 0


class Warns(Tracker):
    def epoch(self, row):
        warnings.warn("of a user", stacklevel=1)
        print_line("5 µm")


def full():
    return os.open("/dev/full", os.O_WRONLY)


def without_a_reader():
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("make", [full, without_a_reader, None], ids=["full", "pipe", "closed"])
@pytest.mark.parametrize("algorithm", FOUR)
def test_a_run_ends_as_usual_whatever_happens_to_its_outputs(algorithm, make):
    def train():
        for number in (1, 2):
            os.close(number) if make is None else os.dup2(make(), number)
        sys.stdout = None if make is None else os.fdopen(1, "w", encoding="ascii")
        sys.stderr = None if make is None else os.fdopen(2, "w", buffering=1, encoding="ascii")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            run = {"epochs": 2, "batch_size": 8, "name": "run", "trackers": [Warns()]}
            CASE[algorithm].make().supervise(**run)

    assert in_another_process(train) == 0
    assert read_checkpoint("run")["epoch"] == 2


TRAINS = f"""
import sys, warnings
sys.path[:0] = {[str(Path(superself.__file__).parent.parent), str(Path(__file__).parent.parent)]!r}
from cases import CASES, TinyBackbone, tiny_images
case = next(case for case in CASES if case.algorithm.__name__ == "RotateNetSupervisor")
case.make().supervise(epochs=3, batch_size=4, name="run")
warnings.warn("at the end")
"""


@pytest.mark.thorough
@pytest.mark.parametrize("command", [command for command in BROKEN if "2>&1" not in command])
def test_a_script_ends_as_usual_whatever_happens_to_its_outputs(command):
    status, _, errors = shell(command, TRAINS)
    assert status == 0 and "Error" not in errors and "ignored" not in errors
    assert read_checkpoint("run")["epoch"] == 3


# ---- trackers that fail ----------------------------------------------------------------------------------------------


class Fails(Tracker):
    """Raises in one of its methods from the second epoch on."""

    def __init__(self, where):
        self.where = where
        setattr(self, where, self.fail)

    def fail(self, row):
        if self.where == "end" or row["epoch"] == 2:
            raise ConnectionError("the server is gone")
        return {}


class Ends(Tracker):
    state = None

    def end(self, state):
        self.state = state


@pytest.mark.parametrize("where", ["step", "measure", "epoch", "end"])
@pytest.mark.parametrize("algorithm", FOUR)
def test_the_error_of_a_users_tracker_is_raised_once_the_run_is_stored(algorithm, where, monkeypatch):
    monkeypatch.setattr("superself.training.run.REFRESH_SECONDS", 0)
    ends, settings = Ends(), {"epochs": 3, "batch_size": 8, "progress": False}
    with pytest.raises(ConnectionError, match="the server is gone"):
        CASE[algorithm].make().supervise(**settings, name="run", trackers=[Fails(where), ends])
    assert read_checkpoint("run")["step"] == {"step": 3, "measure": 4, "epoch": 4, "end": 6}[where]
    assert ends.state == ("finished" if where == "end" else "stopped by an error")
    resumed = CASE[algorithm].make().supervise(**settings, name="run", resume=True)
    whole = CASE[algorithm].make().supervise(**settings, name="whole")
    for one, other in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert read_losses("run") == read_losses("whole")


def read_losses(name):
    with open(f"{name}.csv", newline="") as file:
        return [row["loss"] for row in csv.DictReader(file)]


def test_the_error_of_training_is_shown_rather_than_that_of_a_tracker_at_the_end():
    class Broken(superself.RotateNetSupervisor):
        def _forward(self, data):
            raise ZeroDivisionError("of the user")

    with (
        pytest.warns(UserWarning, match=r"Fails\.end\(\) failed: ConnectionError\('the server is gone'\)"),
        pytest.raises(ZeroDivisionError, match="of the user"),
    ):
        Broken(tiny_images(), backbone=TinyBackbone()).supervise(
            epochs=1, batch_size=8, progress=False, trackers=[Fails("end")]
        )
