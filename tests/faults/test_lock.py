"""One process at a time writes the files of a run."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from superself import Tracker
from superself.training import RunLock, read_checkpoint
from superself.training import lock as module

from cases import CASES, tiny_images
from processes import in_another_process, start, wait

SHORT = {"epochs": 1, "batch_size": 8, "name": "run", "progress": False}
CASE = {case.algorithm.__name__: case for case in CASES}
FOUR = ["BiGanSupervisor", "InstanceDiscriminationSupervisor", "MomentumContrastSupervisor", "RotateNetSupervisor"]


def rotatenet():
    return CASE["RotateNetSupervisor"].make()


def wait_for(path):
    for _ in range(500):
        if os.path.exists(path) and os.path.getsize(path):
            return
        time.sleep(0.01)
    raise TimeoutError(path)


def hold():
    with RunLock("run"):
        time.sleep(60)


@pytest.fixture
def holder():
    """A process that holds the lock."""
    child = start(hold)
    wait_for("run.lock")
    yield child
    try:
        os.kill(child, signal.SIGKILL)
        wait(child)
    except (ProcessLookupError, ChildProcessError):
        pass


@pytest.mark.parametrize("algorithm", FOUR)
def test_a_second_run_of_the_name_is_refused_while_the_first_runs(algorithm, holder):
    CASE[algorithm].make().supervise(**SHORT | {"name": "other"})
    before = sorted(os.listdir())
    with pytest.raises(
        RuntimeError,
        match=rf"The run 'run' is being trained by process {holder} \(since 20.*\), and two runs of one name would mix their "
        "files; pass another name=, or wait until it has ended",
    ):
        CASE[algorithm].make().supervise(**SHORT)
    assert sorted(os.listdir()) == before and "run.lock" in before


def test_the_lock_of_a_killed_process_is_taken_over_at_once(holder):
    os.kill(holder, signal.SIGKILL)  # not waited for: it stays in the list of processes
    time.sleep(0.05)
    rotatenet().supervise(**SHORT)
    assert read_checkpoint("run")["epoch"] == 1 and not os.path.exists("run.lock")


class Looks(Tracker):
    def epoch(self, row):
        self.holder = json.loads(Path("run.lock").read_text())


def test_the_lock_is_held_during_the_run_and_removed_at_its_end():
    looks = Looks()
    rotatenet().supervise(**SHORT, trackers=[looks])
    assert looks.holder["pid"] == os.getpid() and looks.holder["host"] == socket.gethostname()
    assert sorted(os.listdir()) == ["run.csv", "run.html", "run.pt", "run.yaml"]


class Fails(Tracker):
    def __init__(self, where, error):
        setattr(self, where, self.fail)
        self.error = error

    def fail(self, *args):
        raise self.error


@pytest.mark.parametrize("where", ["start", "epoch"])
@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_the_lock_is_released_after_an_error_so_that_a_notebook_can_try_again(where, error):
    with pytest.raises(type(error)):
        rotatenet().supervise(**SHORT, trackers=[Fails(where, error)])
    assert not os.path.exists("run.lock")
    rotatenet().supervise(**SHORT)


def test_a_second_thread_is_refused():
    with RunLock("run"), pytest.raises(RuntimeError, match=r"'run' is being trained by this process \(since"):
        RunLock("run").__enter__()
    caught = []

    def second():
        with pytest.raises(RuntimeError) as error:
            rotatenet().supervise(**SHORT)
        caught.append(str(error.value))

    with RunLock("run"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "this process" in caught[0]


def write_lock(age=0.0, **changes):
    Path("run.lock").unlink(missing_ok=True)
    with RunLock("run"):
        holder = json.loads(Path("run.lock").read_text())
    Path("run.lock").write_text(json.dumps({**holder, **changes}))
    os.utime("run.lock", (time.time() - age,) * 2)


def test_a_process_that_has_got_the_number_of_the_holder_is_not_mistaken_for_it():
    write_lock(started="12")  # this process, but it started at another time
    rotatenet().supervise(**SHORT)


def test_the_lock_of_another_machine_holds_until_it_gives_no_sign_of_life():
    elsewhere = {"host": "node7", "machine": "node7 pid:[1]"}
    write_lock(age=module.STALE - 60, **elsewhere)
    with pytest.raises(
        RuntimeError,
        match=r"by process \d+ on node7 .*If that has ended, remove run\.lock, or try again after 10 minutes",
    ):
        RunLock("run").__enter__()
    write_lock(age=module.STALE + 60, **elsewhere)
    rotatenet().supervise(**SHORT)


def test_a_job_that_slurm_restarted_takes_over_its_own_lock(monkeypatch):
    elsewhere = {"host": "node7", "machine": "node7 pid:[1]", "job": "17", "restarts": 0}
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    write_lock(**elsewhere)
    with pytest.raises(RuntimeError, match="on node7"):
        RunLock("run").__enter__()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with RunLock("run"):
        assert json.loads(Path("run.lock").read_text())["restarts"] == 1


def test_a_holder_gives_signs_of_life(monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.01)
    with RunLock("run"):
        os.utime("run.lock", (0, 0))
        for _ in range(300):
            if os.path.getmtime("run.lock") > 0:
                break
            time.sleep(0.01)
        assert os.path.getmtime("run.lock") > time.time() - 60


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": null}'])
def test_a_damaged_lock_counts_as_left_behind_only_when_it_is_old(content, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    Path("run.lock").write_text(content)
    with pytest.raises(RuntimeError, match=r"by .*; pass another name=.*remove run\.lock"):
        RunLock("run").__enter__()
    os.utime("run.lock", (0, 0))
    with RunLock("run"):
        assert json.loads(Path("run.lock").read_text())["pid"] == os.getpid()


def test_a_forked_process_does_not_release_the_lock_of_its_parent():
    with RunLock("run") as lock:
        assert in_another_process(lambda: lock.__exit__(None, None, None)) == 0
        assert os.path.exists("run.lock")


def test_a_lock_that_someone_else_took_meanwhile_is_not_released():
    with RunLock("run"):
        Path("run.lock").write_text("of another process")
    assert Path("run.lock").read_text() == "of another process"


def test_without_a_lock_file_the_run_goes_on_with_a_warning(monkeypatch):
    def refuse(path, *args, original=os.open, **kwargs):
        if str(path).endswith(".lock"):
            raise PermissionError(13, "Permission denied")
        return original(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.warns(
        UserWarning, match=r"run\.lock cannot be created \(Permission denied\), so nothing keeps a second run"
    ):
        rotatenet().supervise(**SHORT)
    assert read_checkpoint("run")["epoch"] == 1


def test_only_the_first_of_several_processes_takes_the_lock(monkeypatch):
    monkeypatch.setattr(module, "rank", lambda: 1)
    with RunLock("run"):
        assert os.listdir() == []
    with RunLock("run"), RunLock("run"):
        pass


def test_a_lock_that_another_process_took_over_meanwhile_stays_its_own(monkeypatch):
    with RunLock("run"):
        live = Path("run.lock").read_text()
    write_lock(started="12")

    def overtaken(holder, path, original=module._is_stale):
        stale = original(holder, path)
        path.write_text(live)
        return stale

    monkeypatch.setattr(module, "_is_stale", overtaken)
    with pytest.raises(RuntimeError, match="being trained by this process"):
        RunLock("run").__enter__()
    assert Path("run.lock").read_text() == live and os.listdir() == ["run.lock"]


def test_of_many_processes_that_find_a_stale_lock_one_takes_it():
    write_lock(started="12")

    def compete(number):
        def run():
            try:
                with RunLock("run"):
                    Path(f"held.{number}").touch()
                    time.sleep(60)
            except RuntimeError:
                os._exit(7)

        return run

    children = [start(compete(number)) for number in range(6)]
    ended = []
    while len(ended) < 5:  # all but the holder
        child, status = os.waitpid(-1, 0)
        ended.append(child)
        assert os.waitstatus_to_exitcode(status) == 7
    held = list(Path().glob("held.*"))
    os.kill(next(child for child in children if child not in ended), signal.SIGKILL)
    os.wait()
    assert len(held) == 1


def test_two_runs_that_start_together_do_not_mix(tmp_path):
    def train():
        try:
            CASE["MomentumContrastSupervisor"].make(tiny_images(64)).supervise(**SHORT | {"epochs": 2})
        except RuntimeError as error:
            assert "is being trained by process" in str(error)
            os._exit(7)

    statuses = sorted(map(wait, [start(train), start(train)]))
    names = sorted(path.name for path in tmp_path.iterdir())
    if statuses == [0, 7]:
        assert names == ["run.csv", "run.html", "run.pt", "run.yaml"]
    else:  # one was done before the other began
        assert statuses == [0, 0] and "run.1.pt" in names
    assert read_checkpoint("run")["epoch"] == 2
