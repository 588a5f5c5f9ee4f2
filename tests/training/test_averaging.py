"""The moving average of the backbone's weights."""

from __future__ import annotations

import copy
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from superself import LabelSupervisor, MomentumContrastSupervisor, RotateNetSupervisor, features
from superself.networks import CombinedNet

from cases import CASES, TinyBackbone, tiny_images
from steps import IDS

SHORT = {"epochs": 2, "batch_size": 8, "name": "run", "progress": False}


def rotatenet(cls=RotateNetSupervisor, n=16, **arguments):
    return cls(tiny_images(n), **{"backbone": TinyBackbone(), "seed": 0, **arguments})


def moco(n, cls=MomentumContrastSupervisor, seed=0):
    return cls(tiny_images(n), backbone=TinyBackbone(), queue_size=32, momentum=0.9, seed=seed)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


class Records(RotateNetSupervisor):
    """Keeps the backbone's state after each step."""

    def _after_step(self):
        history.append(copy.deepcopy(self.get_backbone().state_dict()))


history: list[dict[str, torch.Tensor]] = []


@pytest.mark.parametrize("decay", [0.9, 0.2])
def test_average_equals_a_slow_loop(decay):
    history.clear()
    supervisor = rotatenet(Records)
    expected = copy.deepcopy(supervisor.get_backbone().state_dict())
    supervisor.supervise(average=decay, **SHORT)
    for step, state in enumerate(history):
        kept = min(decay, (1 + step) / (10 + step))
        for name, value in state.items():
            expected[name] = kept * expected[name] + (1 - kept) * value if value.is_floating_point() else value
    found = supervisor.get_backbone(averaged=True).state_dict()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(found["layers.0.weight"], history[-1]["layers.0.weight"])


def test_the_first_average_by_hand():
    supervisor = rotatenet()
    first = supervisor.get_backbone().layers[0].weight.detach().clone()
    supervisor.supervise(average=0.999, **SHORT | {"epochs": 1, "batch_size": 16})
    last = supervisor.get_backbone().layers[0].weight
    torch.testing.assert_close(supervisor.get_backbone(averaged=True).layers[0].weight, 0.1 * first + 0.9 * last)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_average_changes_no_weight_and_is_loaded(case):
    class Own(case.algorithm):
        def _update(self, loss, optimizer, lr_scheduler):
            self.zero_grad()
            loss.backward()
            optimizer.step()

    case = replace(case, algorithm=Own)
    plain = case.make().supervise(**SHORT | {"name": "plain"})
    averaged = case.make().supervise(average=0.9, **SHORT)
    assert_same(plain.state_dict(), averaged.state_dict())
    backbone = averaged.get_backbone(averaged=True)
    assert backbone is not averaged.get_backbone() and backbone.preprocessing == averaged.preprocessing
    assert features(backbone, tiny_images(8)).features.shape[0] == 8
    loaded = case.algorithm(backbone=case.backbone(), **case.arguments).load("run")
    assert_same(loaded.get_backbone(averaged=True).state_dict(), backbone.state_dict())
    assert_same(loaded.get_backbone().state_dict(), averaged.get_backbone().state_dict())


def test_a_run_without_an_average_has_none():
    supervisor = rotatenet().supervise(average=0.9, **SHORT)
    message = r"get_backbone\(averaged=True\) needs a run that averages .* pass for example average=0.999"
    supervisor.supervise(pretrained="run", **SHORT | {"name": "plain"})
    for without in (supervisor, rotatenet(), rotatenet().load("plain")):
        with pytest.raises(ValueError, match=message):
            without.get_backbone(averaged=True)


def test_a_frozen_backbone_is_its_own_average():
    model = CombinedNet(TinyBackbone(), nn.Linear(16, 2))
    dataset = torch.utils.data.TensorDataset(tiny_images(), torch.arange(16) % 2)
    supervisor = LabelSupervisor(model, dataset).supervise(average=0.9, **SHORT)
    expected = supervisor.get_backbone().state_dict()
    for name, value in supervisor.get_backbone(averaged=True).state_dict().items():
        torch.testing.assert_close(value, expected[name])


# ---- everything together, interrupted within an epoch ----------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate": 2, "precision": "32-true"},
        {"micro_batch": 2, "precision": "32-true"},
        {"accumulate": 2, "precision": "16-mixed"},
    ],
    ids=str,
)
def test_a_resumed_run_with_parts_clipping_and_average_equals_an_uninterrupted_one(settings):
    class Stopped(MomentumContrastSupervisor):
        def _after_step(self):
            super()._after_step()
            if self.step == 3:  # the fourth step: the first of the second epoch
                os.kill(os.getpid(), signal.SIGINT)

    settings = {**SHORT, "epochs": 3, **settings, "clip": 0.1, "average": 0.9}
    whole = moco(20).supervise(**settings | {"name": "whole"})
    with pytest.raises(KeyboardInterrupt):
        moco(20, Stopped).supervise(**settings)
    resumed = moco(20, seed=None).supervise(**settings, resume=True)
    assert_same(whole.state_dict(), resumed.state_dict())
    assert_same(whole.averaged_weights, resumed.averaged_weights)
    for part in (whole, resumed):
        assert part.run.step == 9
    one, other = (part.run.training_step.state_dict() for part in (whole, resumed))
    assert one["loss_scale"] == other["loss_scale"] and one["average"]["updates"] == other["average"]["updates"]
    with pytest.raises(ValueError, match=r"average: was 0.9, is now None"):
        moco(20).supervise(**settings | {"average": None, "resume": True, "epochs": 4})
