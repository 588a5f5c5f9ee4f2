"""Which processes and devices take part in a run.

A launcher starts one process per device: ``torchrun`` or SLURM's ``srun``. Each of them runs the same script, and
``supervise()`` joins them, with Lightning Fabric. A single process imports nothing for this.
"""

from __future__ import annotations

import atexit
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Sequence

import torch
from torch import distributed

from superself.training import parallel
from superself.training.parallel import Parallel
from superself.training.settings import Settings


def start_processes(settings: Settings, device: torch.device) -> Parallel:
    """Joins the processes that torchrun or SLURM started, once per process, and chooses the device of this one.

    Args:
        settings: devices, strategy and num_nodes are read.
        device: of the supervisor; kept in a single process with devices="auto".
    Raises:
        ValueError: if the processes that were started are not those that ``settings`` ask for.
    """
    if settings.strategy == "fsdp":
        raise ValueError(
            'strategy="fsdp" is not supported: momentum encoders, queues and checkpoints need whole weights in every process; '
            'pass strategy="ddp", and micro_batch= or precision="bf16-mixed" to save memory.'
        )
    if distributed.is_available() and distributed.is_initialized():  # by an earlier call, or by the script
        count = distributed.get_world_size()
        local = int(os.environ.get("LOCAL_WORLD_SIZE", count))
        nodes = count // local
    else:
        count, local, nodes = launched_processes()
    if count == 1:
        return Parallel(*_single_process(settings, device))
    if settings.strategy == "dp":
        raise ValueError(
            f'strategy="dp" is for several accelerators in one process, and {count} processes were started; pass '
            'strategy="ddp", or start the script with python.'
        )
    if settings.num_nodes not in (1, nodes):
        raise ValueError(
            f"num_nodes={settings.num_nodes}, but the launcher started processes on {nodes} machines; leave num_nodes= out or "
            f"pass {nodes}."
        )
    chosen = _process_devices(settings, device, local)
    if not parallel.is_open():
        _join(chosen, nodes)
    return Parallel(chosen[int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))])


def launched_processes() -> tuple[int, int, int]:
    """How many processes a launcher started: in all, on this machine, and on how many machines; (1, 1, 1) without one."""
    environ = os.environ
    if "WORLD_SIZE" in environ and "RANK" in environ:  # torchrun, or whoever sets the variables of torch.distributed
        count = int(environ["WORLD_SIZE"])
        local = int(environ.get("LOCAL_WORLD_SIZE", count))
        return count, local, count // local
    if int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in environ:  # of srun, not of sbatch
        count, nodes = int(environ["SLURM_STEP_NUM_TASKS"]), int(environ.get("SLURM_STEP_NUM_NODES", 1))
        return count, count // nodes, nodes
    return 1, 1, 1


def _single_process(settings: Settings, device: torch.device) -> tuple[torch.device, Sequence[torch.device]]:
    """The device of a run without a launcher, and all of them with strategy="dp"."""
    asked = settings.devices
    available = _accelerators(device)
    wanted = asked if not isinstance(asked, (int, str)) else list(range(len(available) if asked == "auto" else asked))
    if settings.strategy == "dp":
        if len(wanted) < 2 or max(wanted) >= len(available):
            raise ValueError(
                f'strategy="dp" with devices={settings.devices!r} needs several accelerators in this process, and there are '
                f"{len(available)}; use a machine with more of them, or leave strategy= and devices= out."
            )
        if settings.compile:
            raise ValueError(
                'compile=True does not work with strategy="dp"; start one process per device with torchrun.'
            )
        devices = [available[number] for number in wanted]
        return devices[0], devices
    several = asked != "auto" and len(wanted) > 1
    if several or settings.num_nodes > 1 or (settings.strategy == "ddp" and asked == "auto" and len(available) > 1):
        raise ValueError(
            f"devices={settings.devices!r}, num_nodes={settings.num_nodes} need several processes, and this script was started "
            f"as one; start it with: {_command(len(wanted), settings.num_nodes)}"
            + (f' (or pass strategy="dp" to use {len(wanted)} devices in one process)' if len(available) > 1 else "")
        )
    if not isinstance(asked, (int, str)) and available:
        if asked[0] >= len(available):
            raise ValueError(
                f"devices={settings.devices!r}, but the accelerators here are 0 to {len(available) - 1}; pass one of them."
            )
        return available[asked[0]], ()
    return device, ()


def _command(devices: int, nodes: int) -> str:
    several = f"--nnodes {nodes} --node-rank RANK --master-addr ADDRESS " if nodes > 1 else ""
    return f"torchrun {several}--nproc-per-node {devices} {shlex.join(sys.argv) or 'train.py'}"


def _process_devices(settings: Settings, device: torch.device, local: int) -> list[torch.device]:
    """The device of each process on this machine."""
    asked = settings.devices
    count = local if asked == "auto" else asked if isinstance(asked, int) else len(asked)
    if count != local:
        raise ValueError(
            f"devices={settings.devices!r} asks for {count} processes per machine, and the launcher started {local}; leave "
            f"devices= out, or start the script with: {_command(count, settings.num_nodes)}"
        )
    available = _accelerators(device)
    if not available:
        return [torch.device("cpu")] * local
    if len(available) == 1:  # SLURM's --gpus-per-task=1 shows each process its own one
        return available * local
    numbers = asked if not isinstance(asked, (int, str)) else list(range(local))
    if max(numbers) >= len(available):
        raise ValueError(
            f"{local} processes were started on a machine with {len(available)} accelerators; start one process for each, with: "
            f"{_command(len(available), settings.num_nodes)}"
        )
    return [available[number] for number in numbers]


def _accelerators(device: torch.device) -> list[torch.device]:
    """The accelerators that this process sees and that several processes or replicas can use."""
    kind = "cuda" if device.type == "cpu" else device.type
    count = torch.cuda.device_count() if kind == "cuda" else 0
    return [torch.device(kind, number) for number in range(count)]


def _join(devices: list[torch.device], nodes: int) -> None:
    """Starts the communication of this process with the others; it ends with the process."""
    if not distributed.is_initialized():
        from lightning_fabric.accelerators import CPUAccelerator, CUDAAccelerator  # takes a second to import
        from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
        from lightning_fabric.strategies import DDPStrategy

        for name in ("lightning_fabric", "lightning_fabric.utilities.rank_zero"):
            logging.getLogger(name).setLevel(logging.WARNING)
        by_slurm = "WORLD_SIZE" not in os.environ
        accelerator = CPUAccelerator() if devices[0].type == "cpu" else CUDAAccelerator()
        environment = SLURMEnvironment(auto_requeue=False) if by_slurm else TorchElasticEnvironment()
        strategy = DDPStrategy(accelerator, devices, environment, timeout=parallel.TIMEOUT)
        strategy.num_nodes = nodes
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and os.environ.get("GROUP_WORLD_SIZE") == "1":
            _meet_after_restart(devices[0])
        strategy.setup_environment()
        atexit.register(parallel.leave)
    parallel.open_groups()
    if distributed.get_rank():
        warnings.simplefilter("ignore")  # process 0 prints them


def _meet_after_restart(device: torch.device) -> None:
    """Starts the communication under a new prefix: torchrun's store still holds the addresses of the dead processes."""
    store, rank, world_size = next(distributed.rendezvous("env://", timeout=parallel.TIMEOUT))
    store = distributed.PrefixStore(f"restart {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    backend = "gloo" if device.type == "cpu" else "nccl"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=parallel.TIMEOUT)
