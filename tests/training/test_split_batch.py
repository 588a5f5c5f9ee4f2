"""A batch computed in parts, or with networks that see a few images at a time, is the whole batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import distributed, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import cross_entropy, normalize
from torch.nn.parallel import DistributedDataParallel

from superself import (
    BYOLSupervisor,
    ContrastiveMultiviewCodingSupervisor,
    ContrastivePredictiveCodingSupervisor,
    RotateNetSupervisor,
    SplitBrainNetSupervisor,
)
from superself.joint_embedding import JointEmbedding
from superself.networks import BatchRenorm1d
from superself.training.split_batch import MicroBatches

from cases import CASES, Case, TinyBackbone, tiny_halves, tiny_images
from steps import IDS, assert_equal_steps, draw_alike, one_step, without_batch_norm

# With random blocks, images have holes of different sizes, which the mean over the batch counts and that over parts cannot.
EXACT = {"ContextNetSupervisor": {"region": "center"}}
SHORT = {"epochs": 1, "batch_size": 8, "name": "run", "progress": False}


class SimCLR(JointEmbedding):
    """Each view finds the other one of its image among all other views of the batch."""

    compares_images = True

    def _forward(self, data):
        z = normalize(self.model(torch.cat(self.views(data))).float(), dim=1)  # (2B, E)
        similarities = (z @ z.T / 0.2).fill_diagonal_(-torch.inf)
        return cross_entropy(similarities, torch.arange(len(z)).roll(len(z) // 2))

    def _default_loss(self):
        return cross_entropy


SIMCLR = Case(SimCLR, {"augment": "byol"})


# ---- parts of a batch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_accumulated_parts_equal_the_whole_batch(case, monkeypatch):
    if case.algorithm.compares_images is True:
        pytest.skip("compares the images of a batch with each other")
    case = replace(case, arguments={**case.arguments, **EXACT.get(case.algorithm.__name__, {})})
    draw_alike(monkeypatch)
    assert_equal_steps(one_step(case, accumulate=4), one_step(case))


@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [
        (ContrastivePredictiveCodingSupervisor, {}),
        (ContrastiveMultiviewCodingSupervisor, {"contrast": "batch", "backbone": tiny_halves()}),
        (SplitBrainNetSupervisor, {"rebalance": True, "backbone": tiny_halves()}),
        (SimCLR, {}),
    ],
)
def test_parts_are_refused_where_images_are_compared_with_each_other(algorithm, arguments):
    supervisor = algorithm(tiny_images(), **{"backbone": TinyBackbone(), **arguments})
    with pytest.raises(ValueError, match=f"accumulate=4 .* the loss of {algorithm.__name__} compares .* micro_batch=2"):
        supervisor.supervise(accumulate=4, **SHORT)


@pytest.mark.parametrize(
    ("split", "plan"),
    [
        ({}, "2 steps, stored as run.pt"),
        ({"accumulate": 4}, "each step in 4 parts of 2 images; batch norm sees one part at a time"),
        ({"micro_batch": 4}, "networks and batch norm see 4 images at a time"),
    ],
    ids=str,
)
def test_the_plan_says_what_batch_norm_sees(split, plan):
    supervisor = RotateNetSupervisor(tiny_images(), backbone=TinyBackbone()).supervise(**SHORT | split)
    assert plan in supervisor.run.facts["plan"]
    without = without_batch_norm(RotateNetSupervisor(tiny_images(), backbone=TinyBackbone())).supervise(**SHORT | split)
    assert "batch norm" not in without.run.facts["plan"]


class Watched(TinyBackbone):
    """Notes how many images it sees, and which of its activations are still in memory."""

    def __init__(self):
        super().__init__()
        self.sizes, self.activations = [], []

    def forward(self, images):
        self.sizes.append(len(images))
        hidden = self.layers[0](images)
        self.activations.append(StorageWeakRef(hidden.untyped_storage()))
        return self.layers[1:](hidden)

    def in_memory(self):
        return sum(not activation.expired() for activation in self.activations)


def test_only_one_part_has_activations_at_a_time():
    class Counts(RotateNetSupervisor):
        def _forward(self, data):
            before.append(backbone.in_memory())
            loss = super()._forward(data)
            assert backbone.in_memory() == before[-1] + 1  # those that its backward pass needs
            sizes.append(backbone.sizes[-1])
            return loss

    backbone, before, sizes = Watched(), [], []
    supervisor = Counts(tiny_images(), backbone=backbone, seed=0)
    supervisor.supervise(**SHORT | {"batch_size": 16, "accumulate": 8})
    assert before == [0] * 8 and sizes == [8] * 8  # four rotations of two images


def test_a_smaller_last_batch_of_a_users_loader_is_weighted_by_its_images(monkeypatch):
    class Ragged(RotateNetSupervisor):
        def _init_data_optimizer(self, *arguments):
            _, optimizer, scheduler = super()._init_data_optimizer(*arguments)
            return [(tiny_images(5), torch.arange(5))], optimizer, scheduler

    draw_alike(monkeypatch)
    case = Case(Ragged)
    assert_equal_steps(one_step(case, accumulate=4), one_step(case))


# ---- networks that see a few images at a time ------------------------------------------------------------------------


@pytest.mark.parametrize("case", [*CASES, SIMCLR], ids=[*IDS, "SimCLR"])
def test_micro_batches_equal_the_whole_batch(case):
    assert_equal_steps(one_step(case, micro_batch=3), one_step(case))


def test_networks_see_few_images_and_keep_no_activations():
    class Counts(SimCLR):
        def _forward(self, data):
            backbone.sizes.clear()
            return super()._forward(data)

        def _update(self, loss, optimizer, lr_scheduler):
            found.append((backbone.in_memory(), list(backbone.sizes)))
            super()._update(loss, optimizer, lr_scheduler)
            found.append((backbone.in_memory(), list(backbone.sizes)))

    backbone, found = Watched(), []
    supervisor = Counts(tiny_images(), backbone=backbone, augment="byol")
    supervisor.supervise(**SHORT | {"batch_size": 16, "micro_batch": 4})
    assert found == [(0, [8] * 4), (0, [8] * 8)]  # two views of four images, forward and again backward


def test_evaluation_and_the_networks_after_a_run_see_whole_batches():
    supervisor = RotateNetSupervisor(tiny_images(), backbone=TinyBackbone())
    supervisor.supervise(**SHORT | {"micro_batch": 2})
    seen = []
    supervisor.get_backbone().register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    supervisor._forward(supervisor.images.load().batch(torch.arange(8)))
    assert seen == [32]


class Moving(nn.Module):
    """Everything whose state or random numbers a second forward pass could disturb."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3), BatchRenorm1d(3, warmup=1)
        )
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))

    def forward(self, x, scale, *, shift):
        y = self.spectral(self.layers(x))
        return {"y": y * scale + shift, "pair": (y.sum(1), "unchanged")}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "autocast"])
def test_the_second_pass_repeats_the_first_and_moves_no_statistics(dtype):
    networks, found = [], []
    for micro in (True, False):
        torch.manual_seed(0)
        network = Moving()
        x = torch.randn(10, 4, requires_grad=True)
        scale, shift = torch.tensor(2.0), torch.randn(10, 3)
        context = torch.autocast("cpu", dtype) if dtype else torch.enable_grad()
        torch.manual_seed(1)
        with context:
            if micro:
                with MicroBatches([network], 4).over(10):
                    out = network(x, scale, shift=shift)
            else:
                outs = [
                    network(a, scale, shift=b) for a, b in zip(x.tensor_split(3), shift.tensor_split(3), strict=True)
                ]
                out = {
                    "y": torch.cat([o["y"] for o in outs]),
                    "pair": (torch.cat([o["pair"][0] for o in outs]), outs[0]["pair"][1]),
                }
            loss = out["y"].float().square().mean() + out["pair"][0].float().mean()
        loss.backward()
        assert out["pair"][1] == "unchanged"
        networks.append(network)
        found.append([loss, x.grad, *(p.grad for p in network.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    for name, value in networks[0].state_dict().items():
        assert torch.equal(value, networks[1].state_dict()[name]), name


def test_a_network_that_does_not_return_one_row_for_each_is_named():
    network = nn.Sequential(nn.Linear(4, 2), nn.Flatten(0))
    match = r"Sequential is called with, but it returned a tensor of shape \(4,\) for 2 rows"
    with pytest.raises(ValueError, match=match), MicroBatches([network], 2).over(4):
        network(torch.zeros(4, 4))


def test_a_loss_with_parameters_is_not_split():
    class Temperature(nn.Module):
        def __init__(self):
            super().__init__()
            self.logarithm = nn.Parameter(torch.zeros(()))

        def forward(self, prediction, target):
            assert len(prediction) == 16
            return (prediction - target).square().mean() * self.logarithm.exp()

    BYOLSupervisor(tiny_images(), backbone=TinyBackbone(), loss=Temperature()).supervise(
        **SHORT | {"batch_size": 16, "micro_batch": 4}
    )


# ---- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [{"accumulate": 4}, {"micro_batch": 4}], ids=str)
def test_a_step_synchronises_processes_once(split, monkeypatch, tmp_path):
    class Wrapped(RotateNetSupervisor):
        def _init_data_optimizer(self, *arguments):
            made = super()._init_data_optimizer(*arguments)
            self.run.module = DistributedDataParallel(self)
            self.run.module.register_comm_hook(None, sum_up)
            return made

    def sum_up(state, bucket):
        summed.append(bucket.buffer().clone())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    summed: list[torch.Tensor] = []
    draw_alike(monkeypatch)
    alone = one_step(Case(RotateNetSupervisor))
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        wrapped = one_step(Case(Wrapped), **split)
    finally:
        distributed.destroy_process_group()
    assert_equal_steps(wrapped, alone)
    weights = sum(p.numel() for p in alone["supervisor"].parameters())
    assert sum(map(torch.numel, summed)) == weights


def test_parameters_that_share_one_gradient_get_it_once_for_each_part(monkeypatch):
    class Shared(TinyBackbone):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

        def forward(self, images):
            return super().forward(images) + (self.a + self.b)  # autograd gives both the same tensor

    draw_alike(monkeypatch)
    case = Case(RotateNetSupervisor, backbone=Shared)
    assert_equal_steps(one_step(case, accumulate=4), one_step(case))


def test_a_loss_of_unknown_kind_warns_that_parts_may_not_be_exact():
    class Own(SimCLR):
        compares_images = None

    with pytest.warns(UserWarning, match="accumulate=4 .* set compares_images = False in Own"):
        Own(tiny_images(), backbone=TinyBackbone(), augment="byol").supervise(**SHORT, accumulate=4)
