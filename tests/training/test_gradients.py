"""Scaling and clipping around any ``_update``."""

from __future__ import annotations

import csv

import pytest
import torch

from superself import BiGanSupervisor, RotateNetSupervisor
from superself.training.gradients import LossScale

from cases import CASES, Case, TinyBackbone, tiny_images
from steps import IDS, assert_equal_steps, draw_alike, one_step

SHORT = {"epochs": 2, "batch_size": 8, "name": "run", "progress": False}
HALF = {"precision": "16-mixed"}


def rotatenet(cls=RotateNetSupervisor, **arguments):
    return cls(tiny_images(), **{"backbone": TinyBackbone(), "seed": 0, **arguments})


def assert_same(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


# ---- clipping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 1e-2}], ids=["one group", "several groups"])
@pytest.mark.parametrize("algorithm", [RotateNetSupervisor, BiGanSupervisor])
def test_clip_equals_clipping_by_hand(algorithm, settings):
    class ByHand(algorithm):
        def _update(self, loss, optimizer, lr_scheduler):
            optimizer.zero_grad()
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(self.parameters(), 0.1).item())
            optimizer.step()
            lr_scheduler.step()

    norms: list[float] = []
    by_hand = rotatenet(ByHand).supervise(**SHORT | settings | {"name": "by_hand", "optimizer": "sgd"})
    clipped = rotatenet(algorithm).supervise(**SHORT | settings | {"clip": 0.1, "optimizer": "sgd"})
    assert min(norms) > 0.1  # otherwise nothing would be clipped
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(value, clipped.state_dict()[name], rtol=1e-6, atol=1e-7)
    with open("run.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["gradient_norm"]) == pytest.approx(sum(norms[:2]) / 2, rel=1e-4)


def test_clip_acts_on_what_a_users_update_steps_with():
    class Own(RotateNetSupervisor):
        def _update(self, loss, optimizer, lr_scheduler):
            self.zero_grad()
            (1000 * loss).backward()
            optimizer.step()
            seen.append(torch.cat([p.grad.flatten() for p in self.parameters()]).norm().item())

    seen: list[float] = []
    rotatenet(Own).supervise(clip=0.5, **SHORT)
    assert seen == pytest.approx([0.5] * 4, rel=1e-3)


def test_hooks_end_with_the_run():
    supervisor = rotatenet().supervise(clip=0.5, average=0.9, **SHORT | HALF)
    optimizer = supervisor.run.optimizer
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    assert not any(p._backward_hooks for p in supervisor.parameters())


class Bare:
    """An optimizer that is not torch's."""

    def __init__(self, parameters, lr=0.1):
        self.param_groups, self.defaults, self.state = [{"params": list(parameters), "lr": lr}], {}, {}

    def step(self):
        pass

    def zero_grad(self, set_to_none=True):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize("settings", [{"clip": 1.0}, {"average": 0.9}, HALF], ids=["clip=", "average=", "16-mixed"])
def test_an_optimizer_without_hooks_is_refused(settings):
    with pytest.raises(TypeError, match=r"acts before or after the steps of a torch.optim.Optimizer, .* is a Bare"):
        rotatenet().supervise(**SHORT | settings, optimizer=Bare, lr_scheduler=lambda optimizer: Schedule())


class Schedule:
    def step(self):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


# ---- float16 ---------------------------------------------------------------------------------------------------------


# Processors are slow at transposed and large convolutions in float16.
QUICK = {"InstanceDiscriminationSupervisor", "JigsawNetSupervisor", "MomentumContrastSupervisor", "RotateNetSupervisor"}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=() if name in QUICK else pytest.mark.thorough)
        for case, name in zip(CASES, IDS, strict=True)
    ],
)
def test_every_algorithm_computes_in_float16(case):
    full, half = one_step(case), one_step(case, **HALF)
    torch.testing.assert_close(half["loss"], full["loss"], rtol=3e-2, atol=3e-2)
    for name, gradient in half["gradients"].items():
        assert gradient.isfinite().all(), name
        assert (gradient - full["gradients"][name]).norm() <= 0.2 * full["gradients"][name].norm() + 1e-2, name


class Faint(RotateNetSupervisor):
    """A loss whose gradients are too small for float16."""

    def _forward(self, data):
        return 1e-6 * super()._forward(data)


def test_gradients_too_small_for_float16_survive_and_update_sees_their_true_values():
    full, half = one_step(Case(Faint)), one_step(Case(Faint), **HALF)
    for name, gradient in half["gradients"].items():
        expected = full["gradients"][name]
        assert (gradient - expected).norm() <= 0.05 * expected.norm(), name
    torch.testing.assert_close(half["loss"], full["loss"], rtol=1e-2, atol=0)


@pytest.mark.parametrize("split", [{"accumulate": 4}, {"micro_batch": 4}], ids=str)
def test_scaled_gradients_of_a_split_batch_are_those_of_the_whole(split, monkeypatch):
    draw_alike(monkeypatch)
    assert_equal_steps(one_step(Case(Faint), **HALF, **split), one_step(Case(Faint), **HALF), tolerance=1e-3)


class Overflows(RotateNetSupervisor):
    """A finite loss whose gradient is infinite in the second step."""

    def _forward(self, data):
        loss = super()._forward(data)
        if self.step == 1:
            loss.register_hook(lambda gradient: gradient * torch.inf)
        return loss

    def _update(self, loss, optimizer, lr_scheduler):
        super()._update(loss, optimizer, lr_scheduler)
        weights.append([p.detach().clone() for p in self.parameters()])
        scales.append(self.run.training_step.scale.scaler.get_scale())
        averages.append([value.clone() for value in self.averaged_weights.values()])


weights, scales, averages = [], [], []


def test_a_step_with_infinite_gradients_is_left_out_and_halves_the_scale():
    for found in (weights, scales, averages):
        found.clear()
    rotatenet(Overflows).supervise(**SHORT | HALF, average=0.9, clip=1.0)
    assert scales == [2.0**16, 2.0**15, 2.0**15, 2.0**15]
    assert all(map(torch.equal, weights[0], weights[1])) and all(map(torch.equal, averages[0], averages[1]))
    assert not all(map(torch.equal, weights[1], weights[2])) and not all(map(torch.equal, averages[1], averages[2]))


def test_the_scale_doubles_after_enough_finite_steps():
    parameter = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scale = LossScale(torch.device("cpu"), [parameter])
    scale.scaler.set_growth_interval(2)
    found = []
    for _ in range(4):
        found.append(scale.next().item())
        (parameter * scale.next()).backward()
        assert parameter.grad.item() == 1
        scale.check(optimizer)
        optimizer.zero_grad()
    scale.check(optimizer)  # a step without gradients, as after a loss that is not finite, counts for nothing
    assert found == [2.0**16, 2.0**16, 2.0**17, 2.0**17]


def test_clipping_by_hand_under_float16_clips_true_gradients():
    class ByHand(RotateNetSupervisor):
        def _update(self, loss, optimizer, lr_scheduler):
            optimizer.zero_grad()
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(self.parameters(), 1e9).item())
            optimizer.step()

    norms: list[float] = []
    rotatenet(ByHand).supervise(**SHORT)
    rotatenet(ByHand).supervise(**SHORT | HALF | {"name": "half"})
    assert norms[4] == pytest.approx(norms[0], rel=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("split", [{}, {"accumulate": 2}, {"micro_batch": 4}], ids=str)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_every_algorithm_trains_in_float16_on_the_device(case, split):
    if case.algorithm.compares_images is True and "accumulate" in split:
        pytest.skip("compares the images of a batch with each other")
    supervisor = case.make(tiny_images(64)).to("cuda")
    supervisor.supervise(
        lr=case.lr, epochs=3, batch_size=16, name="run", clip=1.0, average=0.9, progress=False, **HALF, **split
    )
    assert supervisor.run.training_step.scale.scaler.get_scale() >= 1
    assert all(value.isfinite().all() for value in supervisor.averaged_weights.values())
