"""Runs in two processes what tests/distributed compares with one process. They are started once for all tests.

Each job is a function that both processes call; what it returns in rank 0 comes back, or the error of the first rank that
raised one. ``python tests/two_processes.py FOLDER RANK`` runs all of them.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import superself
from superself import Batch, joint_embedding
from superself.basics.distributed import from_rank_0, gather, gather_objects, mean, rank, world_size
from superself.labels import multilabel_loss
from superself.losses import Hypersphere
from superself.networks import BatchRenorm1d
from superself.networks.batch_norm import synchronize_batch_norm

from cases import CASES, Case, TinyBackbone, tiny_images

IMAGES, BATCH = 24, 8  # three steps
# Options whose loss is computed from the whole batch in another way, or that draw something for it.
VARIANTS = {
    "BiGan": [],
    "ContextNet": [{"region": "center", "overlap": 2}, {"adversarial_weight": 0}],
    "ContrastiveMultiviewCoding": [{"contrast": "batch"}, {"negatives": 5}],
    "DINO": [{"use_bn": True}],
    "DenoiseNet": [{"corrupted_only": True}, {"noise": "gaussian"}],
    "DetCon": [{"momentum": None, "predictor": None}, {"segments": "grid", "beta": 0.5, "tau_plus": 0.05}],
    "ExemplarNet": [{"n_classes": 9}],
    "IIC": [{"over_clusters": None}, {"lamb": 1.5}],
    "InstanceDiscrimination": [{"negatives": 5}, {"proximal": 1.0}],
    "JigsawNet": [{"whole": True}],
    "MomentumContrast": [
        {"symmetric": True},
        {"mochi": (8, 4, 2), "mochi_warmup": 0, "eqco_alpha": 99, "co2_weight": 1.0},
    ],
    "PIRL": [{"negatives": 5}],
    "RotateNet": [{"rotations": (0, 45, 90)}],
    "SimCLR": [{"objective": "dcl"}, {"objective": "dclw"}, {"objective": "hcl"}, {"memory_bank_size": 12}],
    "Siamese": [
        {"negatives": ("batch", "queue"), "symmetric": True, "alpha": 50.0},
        {"negatives": ("batch",), "momentum": None, "predictor": {"norm": "batch"}},
        {"objective": "ip", "negatives": (), "symmetric": True, "predictor": {"norm": "batch"}},
        {"objective": "bce", "negatives": ("batch",)},
        {"objective": "vic", "negatives": (), "momentum": None, "normalize_embeddings": False},
    ],
    "SplitBrainNet": [{"rebalance": True}],
    "VICReg": [{"loss": Hypersphere()}],
    "WhiteningMSE": [{"w_size": 5, "iterations": 2}],
}


def short_name(case: Case) -> str:
    return case.algorithm.__name__.removesuffix("Supervisor")


SETTINGS: dict[str, tuple[Case, dict[str, Any]]] = {}  # every row, and its variants
for case in CASES:
    for arguments in [{}, *VARIANTS.get(short_name(case), [])]:
        SETTINGS[" ".join([short_name(case), *(f"{k}={v}" for k, v in arguments.items())])] = (case, arguments)
# Of these, whole runs are compared too.
RUNS = [*map(short_name, CASES), "MomentumContrast symmetric=True", "SimCLR memory_bank_size=12"]
JOBS: dict[str, Callable[[], Any]] = {}


def job(function: Callable[[], Any]) -> Callable[[], Any]:
    """Registers a function under its name."""
    JOBS[function.__name__] = function
    return function


# ---- one step, and a short run -----------------------------------------------------------------------------------------


def make(name: str, **arguments: Any) -> superself.Supervisor:
    """The supervisor of a row, whose draws for a share of the batch are the share of what is drawn for the whole batch."""
    case, options = SETTINGS[name]

    class Shared(case.algorithm):
        def _forward(self, data):
            with joint_draws(self.generator, len(data)):
                return super()._forward(data)

        def _after_step(self):
            super()._after_step()
            self.differing.update(differing_entries(self.state_dict()))

    images = tiny_images(IMAGES)
    images[::3] //= 4  # the shares of a batch differ
    made = {"backbone": case.backbone(), "seed": 0, **case.arguments, **options, **arguments}
    supervisor = Shared(images, **made).train()
    supervisor.differing = set()  # entries of the state that were not the same in both processes after a step
    return supervisor


def step(name: str, synchronized: bool = True, **arguments: Any) -> dict[str, Any]:
    """Loss, metrics and gradients of the first step: of this process and the other on half of the batch each, or of one."""
    supervisor = make(name, **arguments)
    if synchronized:
        synchronize_batch_norm(supervisor)
    supervisor.generator.manual_seed(5 + rank())
    share = BATCH // world_size()
    mine = torch.arange(BATCH)[rank() * share : (rank() + 1) * share]
    module, skips = supervisor, supervisor.skips_parameters
    if world_size() > 1:
        module = DistributedDataParallel(supervisor, broadcast_buffers=False, find_unused_parameters=skips)
    loss = module(Batch(supervisor.images.batch(mine).images, mine))
    loss.backward()
    gradients = {name: p.grad for name, p in supervisor.named_parameters() if p.grad is not None}
    return {"loss": mean(loss.detach()).item(), "gradients": gradients}


def train(name: str, synchronized: bool = True, **arguments: Any) -> dict[str, Any]:
    """What a run of three steps leaves behind, and which entries differ between the processes."""
    supervisor, case = make(name, **arguments), SETTINGS[name][0]
    rows = []
    supervisor.supervise(
        lr=case.lr, optimizer="sgd", epochs=1, batch_size=BATCH, name=f"run{rank()}", overwrite=True, progress=False,
        precision="32-true", trackers=[Rows(rows)], sync_batchnorm=synchronized, average=0.9,
    )  # fmt: skip
    state = {name: value.clone() for name, value in supervisor.state_dict().items()}
    state |= {f"average of {name}": value for name, value in supervisor.averaged_weights.items()}
    return {
        "state": state,
        "differing": sorted(supervisor.differing),
        "differing at the end": differing_entries(state),
        "chance": supervisor.chance_loss,
        "row": rows[-1] if rows else None,  # only process 0 measures
    }


def differing_entries(state: dict[str, torch.Tensor]) -> list[str]:
    """The names of tensors that are not the same, bit for bit, in the last process as in the first."""
    return gather_objects([name for name, value in state.items() if not torch.equal(value, from_rank_0(value))])[-1]


class Rows(superself.Tracker):
    """Keeps the rows of the epochs."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def epoch(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


@contextlib.contextmanager
def joint_draws(generator: torch.Generator, share: int):
    """Draws of one row per image of the share come from rank 0's draw for the whole batch; other draws are each process's."""
    originals = {"rand": torch.rand, "randint": torch.randint}

    def shared(original):
        def draw(*given, **options):
            size = tuple(given[-1]) if isinstance(given[-1], (tuple, list)) else given
            axis = next((axis for axis, n in enumerate(size) if n and n % share == 0), None)
            if options.get("generator") is not generator or axis is None or 0 in size or world_size() == 1:
                return original(*given, **options)
            whole = [n * world_size() if at == axis else n for at, n in enumerate(size)]
            first = given[:-1] if original is originals["randint"] else ()
            numbers = from_rank_0(original(*first, whole, **options))
            return numbers.chunk(world_size(), axis)[rank()]

        return draw

    try:
        for name, original in originals.items():
            setattr(torch, name, shared(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)


# ---- parts on their own ------------------------------------------------------------------------------------------------


def normalized(norm: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs of two steps, gradients and running statistics of a batch norm, for the batches of all processes."""
    x = x.requires_grad_()
    outputs = [norm(x), norm(2 * x + 1)]
    positions = torch.arange(x[0].numel(), device=x.device).view_as(x[0])
    sum((output**3 * positions).mean() for output in outputs).backward()
    weights = {} if norm.weight is None else {"gradient of scale": mean(norm.weight.grad)}
    rows = {f"output {i}": gather(output.detach()) for i, output in enumerate(outputs)}
    return {**rows, "gradient of input": gather(x.grad) / world_size(), **weights, **norm.state_dict()}


class BatchNormAct2d(nn.BatchNorm2d):
    """Like timm's, which takes seconds to import."""

    __module__ = "timm.layers.norm_act"

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.LeakyReLU(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))


def norms() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Batch norms by name, and a batch for each, whose mean is far from 0."""
    torch.manual_seed(0)
    kinds = {
        "1d": (nn.BatchNorm1d(3), torch.randn(8, 3)),
        "2d": (nn.BatchNorm2d(3), torch.randn(8, 3, 4, 5)),
        "2d, channels last": (nn.BatchNorm2d(3), torch.randn(8, 3, 4, 5).to(memory_format=torch.channels_last)),
        "without scale": (nn.BatchNorm1d(3, affine=False), torch.randn(8, 3)),
        "cumulative": (nn.BatchNorm1d(3, momentum=None), torch.randn(8, 3)),
        "in float64": (nn.BatchNorm2d(3).double(), torch.randn(8, 3, 4, 5).double()),
        "renormalised": (BatchRenorm1d(3, warmup=2), torch.randn(8, 3)),
        "with an activation": (BatchNormAct2d(3), torch.randn(8, 3, 4, 5)),
    }
    return {
        name: (norm, x * torch.tensor([1.0, 3, 9]).view(1, -1, *[1] * (x.ndim - 2)) + 5)
        for name, (norm, x) in kinds.items()
    }


@job
def synchronized_norms() -> dict[str, dict[str, torch.Tensor]]:
    """What ``normalized`` returns for half of the batch in each process."""
    return halves_normalized("cpu")


@job
def synchronized_norms_on_an_accelerator() -> dict[str, dict[str, torch.Tensor]]:
    """The same there; both processes share one device."""
    return halves_normalized("cuda") if torch.cuda.is_available() else {}


def halves_normalized(device: str) -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for name, (norm, x) in norms().items():
        mine = x.chunk(2)[rank()].to(device, copy=True)
        result = normalized(synchronize_batch_norm(norm.to(device)), mine)
        found[name] = {entry: value.cpu() for entry, value in result.items()}
    return found


def known_labels() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (4, 3), and labels most of which are known for the last two images only."""
    nan = float("nan")
    labels = torch.tensor([[nan, nan, nan], [nan, 1, nan], [1, 0, 1], [0, 0, nan]])
    return torch.arange(12.0).view(4, 3).sin(), labels


@job
def multilabel() -> float:
    """The mean of the losses of both processes."""
    logits, labels = (part.chunk(2)[rank()] for part in known_labels())
    return mean(multilabel_loss(logits, labels)).item()


@job
def unequal_rows() -> list[tuple[str, str]]:
    """The errors of both processes when one has more rows than the other."""
    gathered = error_of(lambda: gather(torch.zeros(3 + rank(), 2)))
    return gather_objects((str(gathered), str(error_of(train_on_unequal_batches))))


def train_on_unequal_batches() -> None:
    class Unequal(superself.RotateNetSupervisor):
        def _init_data_optimizer(self, *given):
            _, optimizer, schedule = super()._init_data_optimizer(*given)
            return torch.utils.data.DataLoader(tiny_images(12), batch_size=4 + rank()), optimizer, schedule

    supervisor = Unequal(tiny_images(12), backbone=TinyBackbone(), seed=0)
    supervisor.supervise(epochs=1, batch_size=8, name=f"unequal{rank()}", progress=False)


def error_of(function: Callable[[], Any]) -> ValueError | None:
    try:
        function()
    except ValueError as error:
        return error


@job
def shared_draw() -> list[list[int]]:
    """What each process has after ``from_rank_0``."""
    return gather_objects(from_rank_0(torch.tensor([rank(), 7])).tolist())


@job
def bank_rows() -> torch.Tensor:
    """The embeddings of a data set that are the rows of a bank, made in parts of up to 5 images."""
    return embeddings_in_parts()


def embeddings_in_parts() -> torch.Tensor:
    found = []

    class Observed(superself.InstanceDiscriminationSupervisor):
        def _before_epoch(self, epoch):
            found.append(self._embed_data_set())

    largest, joint_embedding.LARGEST_BATCH = joint_embedding.LARGEST_BATCH, 5
    supervisor = Observed(tiny_images(IMAGES), backbone=TinyBackbone(), seed=0)
    supervisor.supervise(epochs=1, batch_size=BATCH, name=f"bank{rank()}", progress=False, precision="32-true")
    joint_embedding.LARGEST_BATCH = largest
    return found[0]


for setting in SETTINGS:
    JOBS[f"step {setting}"] = partial(step, setting)
for setting in RUNS:
    JOBS[f"train {setting}"] = partial(train, setting)
for case in CASES:
    JOBS[f"local {short_name(case)}"] = partial(train, short_name(case), synchronized=False)
    if case.local:
        JOBS[f"local step {short_name(case)}"] = partial(step, short_name(case), synchronized=False, splits=2)


# ---- starting them -----------------------------------------------------------------------------------------------------


def run_all_jobs(folder: Path) -> Callable[[], dict[str, Any]]:
    """Starts both processes in ``folder``; the result waits for them and returns what each job returned."""
    root = Path(superself.__file__).parents[1]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}:{root / 'tests'}", "PATH": "", "HOME": str(folder)}
    command = [sys.executable, __file__, str(folder)]
    runs = [
        subprocess.Popen([*command, str(r)], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
        for r in range(2)
    ]

    def results() -> dict[str, Any]:
        try:
            errors = [run.communicate(timeout=600)[1] for run in runs]
        finally:
            for run in runs:
                run.kill()
        found = [torch.load(folder / f"{r}.pt") if (folder / f"{r}.pt").exists() else {} for r in range(2)]
        for name in JOBS:
            failed = next((part[name] for part in found if is_error(part.get(name))), None)
            lost = "it was not reached:\n" + "\n".join(text[-2000:] for text in errors)
            found[0][name] = failed or found[0].get(name, {"error": lost})
        return found[0]

    return results


def is_error(result: Any) -> bool:
    return isinstance(result, dict) and set(result) == {"error"}


def main(folder: Path, number: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder / 'rendezvous'}", timedelta(seconds=120), rank=number, world_size=2
    )
    results: dict[str, Any] = {}
    try:
        for name, function in JOBS.items():
            try:
                results[name] = function()
            except Exception:
                results[name] = {"error": traceback.format_exc()}
            if len(set(gather_objects((name, is_error(results[name]))))) > 1:
                break  # an error in one process only leaves the two at different places
    finally:
        torch.save(results, folder / f"{number}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
