"""Several processes on the CPU: the same script under torchrun, on two machines, under SLURM, and when one of them fails."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import superself
from superself import RotateNetSupervisor
from superself.training import read_checkpoint

from cases import TinyBackbone, tiny_images

ROOT = Path(superself.__file__).parents[1]
PREAMBLE = """
import hashlib, json, os, signal, sys, time
import torch
torch.set_num_threads(1)
import superself
from superself import RotateNetSupervisor
from superself.basics.distributed import rank
from superself.data import images
from superself.training import Tracker, parallel
from cases import CASES, TinyBackbone, tiny_images

class Watched(RotateNetSupervisor):
    on_step = staticmethod(lambda step: None)
    def _after_step(self):
        super()._after_step()
        self.on_step(self.run.step)

def make(cls=Watched, **options):
    return cls(tiny_images(), backbone=TinyBackbone(), **options)

def digest(module):
    parts = [t.detach().contiguous().numpy().tobytes() for t in module.parameters()]
    return hashlib.md5(b"".join(parts)).hexdigest()

options = dict(batch_size=8, lr=1e-2, precision="32-true")
found = {}
"""
FINISH = """
with open(f"found{rank()}.json", "w") as file:
    json.dump(found, file)
"""


def script(folder: Path, body: str, name: str = "train.py") -> Path:
    path = folder / name
    path.write_text(PREAMBLE + body + FINISH)
    return path


def environment(**more: str) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def torchrun(path: Path, *arguments: str, restarts: int = 0) -> subprocess.Popen:
    """Starts two processes of a script with its arguments."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--max-restarts={restarts}"]
    return start([*command, f"--master-port={free_port()}", str(path), *arguments], path.parent)


def start(command: list[str], folder: Path, **variables: str) -> subprocess.Popen:
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment(**variables), **pipe)


def finish(run: subprocess.Popen, seconds: float = 120) -> str:
    """What it printed; nothing is left behind."""
    try:
        output, _ = run.communicate(timeout=seconds)
        return output
    finally:
        run.kill()


def results(folder: Path, processes: int = 2) -> list[dict]:
    return [json.loads((folder / f"found{rank}.json").read_text()) for rank in range(processes)]


EVERYTHING = """
parallel.EXCHANGE_SECONDS = 0.02
parallel.TIMEOUT = parallel.datetime.timedelta(seconds=4)

s = make()  # without a seed, so that processes start from different weights
first = digest(s)
s.supervise(epochs=2, name="store/two", **options)
found["start"], found["seed"], found["weights"], found["steps"] = first, s.seed, digest(s), s.run.step
found["wrapped"] = type(s.run.module).__name__, sorted(s.state_dict()) == sorted(make().state_dict())
group = torch.distributed.group.WORLD

class Slow(Tracker):
    def measure(self, row):
        time.sleep(5)  # longer than TIMEOUT
        return {"measured": 1.0}

s = make(seed=0)
s.supervise(epochs=1, name="store/long", trackers=[Slow()], progress=False, **options)
found["same group"] = torch.distributed.group.WORLD is group
s.supervise(epochs=3, name="store/long", resume=True, progress=False, **options)
found["resumed"] = digest(s)
s = make(seed=0)
s.supervise(epochs=3, name="store/whole", progress=False, **options)
found["uninterrupted"] = digest(s)

s = make()
s.on_step = lambda step: os.kill(os.getpid(), signal.SIGTERM) if (rank(), step) == (1, 5) else None
try:
    s.supervise(epochs=1000, name="store/signal", progress=False, **options)
except SystemExit as error:
    found["signal"] = error.code, s.run.step, s.run.saved_step

class Broken(Watched):
    def _forward(self, data):
        return super()._forward(data) * (float("nan") if (rank(), self.run.step) == (1, 3) else 1.0)
s = make(Broken)
try:
    s.supervise(epochs=1000, name="store/nan", progress=False, **options)
except FloatingPointError as error:
    found["nan"] = s.run.step, str(error)[:30]

class Failing(Tracker):
    def epoch(self, row):
        raise KeyError("of a tracker")
s = make()
try:
    s.supervise(epochs=3, name="store/failing", trackers=[Failing()], progress=False, **options)
except KeyError as error:
    found["tracker"] = s.run.step, str(error)

class Apart(Watched):
    def _epochs(self, epochs, train_loader, optimizer, lr_scheduler):
        for data in self.run.batches(train_loader):
            loss = self._forward(data)
            self._update(loss, optimizer, lr_scheduler)
            self.run.end_step(loss)
        self.run.end_epoch()
try:
    make(Apart).supervise(epochs=1, name="store/apart", progress=False, **options)
except RuntimeError as error:
    found["apart"] = str(error)
class Turns(Watched):
    def _build(self):
        super()._build()
        self.heads = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2))
    def _forward(self, data):
        odd = self.run.step % 2
        return super()._forward(data) + self.heads[odd](torch.ones(4)).square().mean()
class Declared(Turns):
    skips_parameters = True
try:
    make(Turns).supervise(epochs=3, name="store/turns", progress=False, **options)
except RuntimeError as error:
    found["turns"] = str(error)
s = make(Declared)
s.supervise(epochs=3, name="store/declared", progress=False, **options)
found["declared"] = digest(s)

s = make()
s.images._broken[rank()] = "broken"  # as if this process alone had tried to read it
images.BROKEN_SHARE = 0.5
s.supervise(epochs=1, name="store/skipped", progress=False, **options)

for case in CASES:
    s = case.make(seed=None)
    s.supervise(epochs=1, batch_size=8, name="store/case", overwrite=True, progress=False)
    found[case.algorithm.__name__] = digest(s)
"""


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """One launch of two processes for many claims, as each launch takes seconds."""
    folder = tmp_path_factory.mktemp("everything")
    output = finish(torchrun(script(folder, EVERYTHING)))
    assert (folder / "found0.json").is_file(), output[-4000:]
    return folder, output, *results(folder)


def test_processes_start_from_the_weights_and_the_seed_of_the_first_and_stay_equal(everything):
    _, _, first, second = everything
    assert first["start"] != second["start"] and first["seed"] == second["seed"]
    assert first["weights"] == second["weights"] != first["start"]
    assert first["steps"] == 4  # of 8 images in each of 2 epochs of 16


@pytest.mark.parametrize("case", superself.algorithms.ALGORITHMS.values(), ids=lambda cls: cls.__name__)
def test_every_algorithm_trains_in_two_processes_with_equal_weights(everything, case):
    _, _, first, second = everything
    assert first[case.__name__] == second[case.__name__]


def test_the_first_process_alone_writes_and_prints(everything):
    folder, output, _, _ = everything
    assert sorted(path.name for path in (folder / "store").glob("two*")) == [
        "two.csv",
        "two.html",
        "two.pt",
        "two.yaml",
    ]
    assert output.count("epoch 2/2") == 1 and output.count("plan: 2 epochs of 2 steps") == 1
    assert "processes: 2" in (folder / "store/two.yaml").read_text()


def test_no_wrapper_is_left_in_the_module_or_its_file(everything):
    folder, _, first, _ = everything
    assert first["wrapped"] == ["Watched", True]
    loaded = RotateNetSupervisor(tiny_images(), backbone=TinyBackbone()).load(folder / "store/two")
    assert type(loaded.get_backbone()) is TinyBackbone


def test_a_second_run_uses_the_same_processes_and_may_measure_longer_than_the_timeout(everything):
    folder, _, first, _ = everything
    assert first["same group"] is True
    assert "measured" in (folder / "store/long.csv").read_text()


def test_run_resumed_in_two_processes_equals_uninterrupted_run(everything):
    folder, _, first, second = everything
    assert first["resumed"] == first["uninterrupted"] == second["uninterrupted"]
    assert len(read_checkpoint(folder / "store/whole")["random_of_others"]) == 1


def test_a_signal_to_one_process_stops_all_at_the_same_step_with_a_stored_run(everything):
    folder, _, first, second = everything
    code, step, saved = first["signal"]
    assert first["signal"] == second["signal"]
    assert code == 143 and step == saved >= 5
    assert read_checkpoint(folder / "store/signal")["step"] == step


def test_a_loss_that_is_not_finite_in_one_process_stops_all_at_the_same_step(everything):
    _, _, first, second = everything
    assert first["nan"] == second["nan"] == [3, "The loss is nan in epoch 2, st"]


def test_an_error_of_a_tracker_stops_all_processes(everything):
    _, _, first, second = everything
    assert first["tracker"] == second["tracker"] == [2, "'of a tracker'"]


def test_a_loop_that_bypasses_the_average_of_gradients_is_reported(everything):
    _, _, first, second = everything
    assert "the weights of the processes differ" in first["apart"] == second["apart"]
    assert "run.forward(data), not _forward(data)" in first["apart"]


def test_a_head_that_takes_turns_is_declared_or_reported(everything):
    _, _, first, second = everything
    assert "a trained parameter got no gradient" in first["turns"] == second["turns"]
    assert "set skips_parameters = True" in first["turns"]
    assert first["declared"] == second["declared"]


def test_images_that_any_process_could_not_read_are_listed(everything):
    folder, *_ = everything
    assert (folder / "store/skipped.skipped.txt").read_text() == "item 0\tbroken\nitem 1\tbroken\n"


DIES = """
def die(step):
    if os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0" and (rank(), step) == (1, int(sys.argv[1])):
        os.kill(os.getpid(), signal.SIGKILL)
s = make(seed=0)
s.on_step = die
s.supervise(epochs=int(sys.argv[2]), name="store/run", resume="auto", **options)
found["weights"], found["steps"], found["began"] = digest(s), s.run.step, s.run.facts["resumed_at_step"]
"""


def test_a_killed_process_ends_the_job_and_another_number_of_processes_continues_it(tmp_path):
    path = script(tmp_path, DIES)
    began = time.perf_counter()
    run = torchrun(path, "5", "4")
    output = finish(run)
    assert run.returncode != 0 and time.perf_counter() - began < 60, output[-3000:]
    assert read_checkpoint(tmp_path / "store/run")["step"] == 4  # the last good epoch

    alone = RotateNetSupervisor(tiny_images(), backbone=TinyBackbone(), seed=0)  # two processes, then one
    settings = {"batch_size": 8, "lr": 1e-2, "precision": "32-true", "resume": "auto", "progress": False}
    alone.supervise(epochs=3, name=tmp_path / "store/run", **settings)
    assert alone.run.facts["resumed_at_step"] == 4 and alone.run.step == 6

    run = torchrun(path, "7", "5", restarts=1)  # then two again
    output = finish(run)
    assert run.returncode == 0, output[-3000:]
    first, second = results(tmp_path)
    assert first["weights"] == second["weights"] and first["steps"] == 10, output[-3000:]
    assert first["began"] == 6  # of the second start by torchrun itself: epoch 4 was not finished when it was killed


HANGS = """
parallel.TIMEOUT = parallel.datetime.timedelta(seconds=3)
s = make(seed=0)
s.on_step = lambda step: time.sleep(12) if (rank(), step) == (1, 3) else None
s.supervise(epochs=4, name="store/run", progress=False, **options)
"""


def test_a_process_that_hangs_ends_the_job_after_the_timeout_with_its_number(tmp_path):
    run = torchrun(script(tmp_path, HANGS))
    output = finish(run)
    assert run.returncode != 0
    assert "process 0 of 2 stops because process 1 does not answer" in output
    assert read_checkpoint(tmp_path / "store/run")["step"] == 2


TRAINS = """
s = make()
s.supervise(epochs=1, name="store/run", **options)
found["weights"], found["processes"] = digest(s), s.run.facts["processes"]
"""


def test_processes_of_slurm_train_together(tmp_path):
    path = script(tmp_path, TRAINS)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0"}
    job |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_STEP_NUM_TASKS": "2"}
    job["MASTER_PORT"] = str(free_port())
    runs = [
        start([sys.executable, str(path)], tmp_path, **job, SLURM_PROCID=str(task), SLURM_LOCALID=str(task))
        for task in range(2)
    ]
    output = "".join([finish(run) for run in runs])
    assert [run.returncode for run in runs] == [0, 0], output[-3000:]
    first, second = results(tmp_path)
    assert first == second and first["processes"] == 2
    assert output.count("epoch 1/1") == 1


@pytest.mark.thorough
@pytest.mark.parametrize("rendezvous", ["c10d", "static"])
def test_two_machines_train_together(tmp_path, rendezvous):
    path, port = script(tmp_path, TRAINS), free_port()
    fixed = ["--master-addr=127.0.0.1", f"--master-port={port}"]
    elastic = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=7", "--local-addr=127.0.0.1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += elastic if rendezvous == "c10d" else fixed
    runs = [start([*command, f"--node-rank={node}", str(path)], tmp_path) for node in range(2)]
    output = "".join([finish(run) for run in runs])
    assert [run.returncode for run in runs] == [0, 0], output[-3000:]
    first, second = results(tmp_path)
    assert first == second and first["processes"] == 2
