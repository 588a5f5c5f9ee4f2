"""Which processes and devices a run has, and what it exchanges; all of it in a single process."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from superself import RotateNetSupervisor
from superself.basics.distributed import alone, gather, world_size
from superself.training import Parallel, Settings, start_processes
from superself.training.ending import store_end
from superself.training.launch import launched_processes

from cases import TinyBackbone, tiny_images

CPU = torch.device("cpu")
VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def launched(monkeypatch, count, **more):
    for name, value in {"WORLD_SIZE": count, "RANK": 0, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": count, **more}.items():
        monkeypatch.setenv(name, str(value))


def accelerators(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_a_single_process_calls_the_supervisor_itself_and_imports_no_fabric():
    before = set(sys.modules)
    supervisor = RotateNetSupervisor(tiny_images(), backbone=TinyBackbone())
    called = []
    supervisor.register_forward_pre_hook(lambda module, _: called.append(supervisor.run.module))
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False, precision="32-true")
    assert called and all(module is supervisor for module in called)
    assert not [name for name in set(sys.modules) - before if name.startswith("lightning_fabric")]
    assert not torch.distributed.is_initialized()


def test_in_a_single_process_everything_is_what_it_was():
    alone, loss, row = Parallel(CPU), torch.ones(()), {"loss": 1.0}
    assert alone.is_first and not alone.several
    assert alone.share_value(loss) is loss and alone.broadcast(row) is row and alone.gather(row) == [row]
    assert alone.average(row) == row and alone.agree(True) is True and alone.agree(False) is False
    assert alone.due(3, True) and not alone.due(3, False)
    assert alone.stops(15) == 15 and alone.stops(None) is None
    assert alone.wrap(torch.nn.Linear(1, 1), []).__class__ is torch.nn.Linear


def test_an_error_of_work_that_one_process_does_is_raised():
    with pytest.raises(KeyError, match="lost"), Parallel(CPU).solo():
        raise KeyError("lost")


def test_work_of_one_process_sees_no_others(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    assert world_size() == 3
    with alone():
        assert world_size() == 1 and gather(torch.ones(2)).shape == (2,)
    assert world_size() == 3


def test_processes_of_torchrun_and_of_srun_are_counted(monkeypatch):
    assert launched_processes() == (1, 1, 1)
    monkeypatch.setenv("SLURM_NTASKS", "4")  # of sbatch, which starts one process
    assert launched_processes() == (1, 1, 1)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")  # of srun
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert launched_processes() == (4, 2, 2)
    launched(monkeypatch, 8, LOCAL_WORLD_SIZE=2)  # torchrun inside of srun
    assert launched_processes() == (8, 2, 4)


def test_one_process_of_torchrun_is_a_single_process(monkeypatch):
    launched(monkeypatch, 1)
    assert not start_processes(Settings(devices=1, strategy="ddp"), CPU).several
    assert not torch.distributed.is_initialized()


def test_several_devices_without_a_launcher_are_refused_with_the_command_to_use(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--size", "3"])
    with pytest.raises(ValueError, match="devices=2, .* start it with: torchrun --nproc-per-node 2 train.py --size 3$"):
        start_processes(Settings(devices=2, strategy="ddp"), CPU)
    command = "torchrun --nnodes 2 --node-rank RANK --master-addr ADDRESS --nproc-per-node 4 train.py"
    with pytest.raises(ValueError, match=command):
        start_processes(Settings(devices=4, num_nodes=2), CPU)
    accelerators(monkeypatch, 4)
    with pytest.raises(ValueError, match='--nproc-per-node 4 .*or pass strategy="dp" to use 4 devices in one process'):
        start_processes(Settings(strategy="ddp"), CPU)


def test_a_single_device_is_chosen_by_its_number(monkeypatch):
    accelerators(monkeypatch, 3)
    assert start_processes(Settings(devices=[2]), CPU).device.index == 2
    assert start_processes(Settings(devices=1), CPU).device == CPU  # the supervisor's own
    with pytest.raises(ValueError, match=r"devices=\[3\], but the accelerators here are 0 to 2; pass one of them"):
        start_processes(Settings(devices=[3]), CPU)


def test_replicas_get_all_devices_or_those_that_were_asked_for(monkeypatch):
    with pytest.raises(ValueError, match='strategy="dp" with devices=2 needs several accelerators .* there are 0'):
        start_processes(Settings(devices=2, strategy="dp"), CPU)
    accelerators(monkeypatch, 3)
    chosen = [start_processes(Settings(devices=d, strategy="dp"), CPU) for d in ("auto", 2, [2, 0])]
    assert [[device.index for device in each.devices] for each in chosen] == [[0, 1, 2], [0, 1], [2, 0]]
    assert chosen[2].device.index == 2
    with pytest.raises(ValueError, match='compile=True does not work with strategy="dp"'):
        start_processes(Settings(strategy="dp", compile=True), CPU)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"devices": 3}, "devices=3 asks for 3 processes per machine, and the launcher started 2; leave devices= out"),
        ({"num_nodes": 4}, "num_nodes=4, but the launcher started processes on 1 machines; leave num_nodes= out"),
        ({"strategy": "dp"}, 'strategy="dp" is for several accelerators in one process, and 2 processes were started'),
    ],
)
def test_processes_that_contradict_the_arguments_are_refused(monkeypatch, options, said):
    launched(monkeypatch, 2)
    with pytest.raises(ValueError, match=said):
        start_processes(Settings(**options), CPU)


def test_more_processes_than_accelerators_are_refused(monkeypatch):
    launched(monkeypatch, 4)
    accelerators(monkeypatch, 2)
    with pytest.raises(ValueError, match="4 processes were started on a machine with 2 accelerators"):
        start_processes(Settings(), CPU)


def test_fsdp_is_refused_with_the_reason():
    with pytest.raises(
        ValueError, match='"fsdp" is not supported: momentum encoders, queues and checkpoints need whole'
    ):
        start_processes(Settings(strategy="fsdp"), CPU)


def test_a_file_of_another_number_of_processes_gives_each_process_its_own_random_numbers(tmp_path):
    options = {"batch_size": 8, "name": "run", "progress": False, "precision": "32-true"}
    RotateNetSupervisor(tiny_images(), backbone=TinyBackbone(), seed=0).supervise(epochs=1, **options)
    stored = torch.load("run.pt", weights_only=True)
    states = []
    for others in ([], [stored["random"]]):
        torch.save({**stored, "random_of_others": others}, "run.pt")
        resumed = RotateNetSupervisor(tiny_images(), backbone=TinyBackbone(), seed=0)
        resumed.supervise(epochs=1, resume=True, **options)
        states.append(resumed.generator.get_state())
    assert torch.equal(states[0], stored["random"]["run"])
    assert not torch.equal(states[1], states[0])


def test_a_run_that_goes_on_at_a_late_step_exchanges_after_the_next_one(monkeypatch):
    parallel = Parallel(CPU)
    parallel.world_size = 2
    parallel.begin(1200)
    assert not parallel.due(1200, True) and parallel.due(1201, False)


def test_a_value_that_only_one_process_has_stays_its_own(monkeypatch):
    parallel = Parallel(CPU)
    parallel.world_size = 2
    monkeypatch.setattr(parallel, "gather", lambda row: [row, {"loss": 3.0}])
    row = {"loss": torch.tensor(1.0), "mine": torch.tensor(5.0), "other": 7.0}
    assert parallel.average(row) == {"loss": 2.0, "mine": 5.0, "other": 7.0}


def test_after_an_error_in_one_of_several_processes_nothing_is_stored_that_takes_all_of_them():
    run = SimpleNamespace(parallel=SimpleNamespace(several=True), signals=SimpleNamespace(twice=False))
    assert store_end(run, OSError("lost")) is None
