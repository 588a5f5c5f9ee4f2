"""A weight decay that follows a schedule, and parameters that are frozen for the first steps."""

import copy
import csv
import os
import signal

import pytest
import torch
import yaml

from superself import RotateNetSupervisor
from superself.training import LARS, GroupRule, Schedule

from cases import TinyBackbone, tiny_images

RISING = Schedule(0.1, 0.4)
SETTINGS = {"epochs": 3, "batch_size": 8, "name": "run", "progress": False}


def rotatenet(cls=RotateNetSupervisor):
    return cls(tiny_images(), backbone=TinyBackbone(), seed=0)


class Decays(RotateNetSupervisor):
    """Notes the weight decay of each group, by name, when the optimizer has stepped."""

    seen = ()

    def _update(self, loss, optimizer, lr_scheduler):
        super()._update(loss, optimizer, lr_scheduler)
        self.seen = [*self.seen, {group["name"]: group["weight_decay"] for group in optimizer.param_groups}]


def test_only_decayed_groups_follow_the_schedule_step_by_step():
    supervisor = rotatenet(Decays).supervise(**SETTINGS, weight_decay=RISING)
    assert [groups["main"] for groups in supervisor.seen] == [RISING(step, 6) for step in range(6)]
    assert [groups["main, no decay"] for groups in supervisor.seen] == [0.0] * 6


def test_a_rule_multiplies_the_schedule():
    class Ruled(Decays):
        def _group_rules(self):
            return [GroupRule("model.backbone", decay_factor=0.5)]

    supervisor = rotatenet(Ruled).supervise(**SETTINGS, weight_decay=RISING)
    assert [groups["model.backbone"] for groups in supervisor.seen] == [0.5 * RISING(step, 6) for step in range(6)]
    assert [groups["main"] for groups in supervisor.seen] == [RISING(step, 6) for step in range(6)]


def test_a_schedule_from_zero_decays_the_same_parameters_as_a_number():
    supervisor = rotatenet(Decays).supervise(**SETTINGS, weight_decay=Schedule(0.0, 0.4))
    groups = {group["name"]: group["params"] for group in supervisor.run.optimizer.param_groups}
    assert all(parameter.ndim > 1 for parameter in groups["main"])
    assert all(parameter.ndim < 2 for parameter in groups["main, no decay"])
    assert [decays["main"] for decays in supervisor.seen][:2] == [0.0, Schedule(0.0, 0.4)(1, 6)]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", LARS])
def test_a_constant_schedule_equals_the_number(optimizer):
    number = rotatenet().supervise(**SETTINGS, optimizer=optimizer, weight_decay=0.3)
    schedule = rotatenet().supervise(**SETTINGS, optimizer=optimizer, weight_decay=Schedule(0.3, shape="constant"))
    none = rotatenet().supervise(**SETTINGS, optimizer=optimizer, weight_decay=0.0)
    same = [torch.equal(a, b) for a, b in zip(number.parameters(), schedule.parameters(), strict=True)]
    assert all(same)
    assert not all(torch.equal(a, b) for a, b in zip(number.parameters(), none.parameters(), strict=True))


def test_it_acts_on_a_users_update_and_ends_with_the_run():
    class Own(Decays):
        def _update(self, loss, optimizer, lr_scheduler):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.seen = [*self.seen, optimizer.param_groups[0]["weight_decay"]]

    supervisor = rotatenet(Own).supervise(**SETTINGS, weight_decay=RISING)
    assert supervisor.seen == [RISING(step, 6) for step in range(6)]
    assert not supervisor.run.optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_resumed_run_continues_the_schedule_of_the_whole_run(stop):
    class Stopped(Decays):
        def _after_step(self):
            super()._after_step()
            if self.step == stop:
                os.kill(os.getpid(), signal.SIGINT)

    given = {"optimizer": "adamw", "weight_decay": Schedule(0.1, 0.4, warmup="1 epochs")}
    whole = rotatenet(Decays).supervise(**{**SETTINGS, "name": "whole"}, **given)
    stopped = rotatenet(Stopped)
    with pytest.raises(KeyboardInterrupt):
        stopped.supervise(**SETTINGS, **given)
    resumed = rotatenet(Decays).supervise(**SETTINGS, **given, resume=True)
    assert [*stopped.seen, *resumed.seen] == whole.seen
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_it_is_recorded():
    rotatenet().supervise(**SETTINGS, weight_decay=RISING)
    with open("run.csv") as file:
        column = [float(row["weight_decay"]) for row in csv.DictReader(file)]
    assert column == pytest.approx([(RISING(step, 6) + RISING(step + 1, 6)) / 2 for step in (0, 2, 4)])
    with open("run.yaml") as file:
        assert "start" in str(yaml.safe_load(file)["settings"]["weight_decay"])


def test_another_schedule_is_another_run():
    rotatenet().supervise(**SETTINGS, weight_decay=RISING)
    with pytest.raises(ValueError, match="weight_decay.*: was .*0.4.* is now .*0.5"):
        rotatenet().supervise(**{**SETTINGS, "epochs": 4}, weight_decay=Schedule(0.1, 0.5), resume=True)


@pytest.mark.parametrize(
    ("decay", "kind", "error"),
    [
        (Schedule(-0.1, 0.4), ValueError, "weight_decay=Schedule.* must stay within"),
        ("cosine", TypeError, "weight_decay='cosine' must be a number"),
    ],
)
def test_what_is_not_a_weight_decay_is_refused(decay, kind, error):
    with pytest.raises(kind, match=error):
        rotatenet().supervise(**SETTINGS, weight_decay=decay)


# ---- parameters that do not move at first -----------------------------------------------------------------------------


class FrozenHead(RotateNetSupervisor):
    """The head keeps its weights for three steps; notes in which steps it and the backbone moved."""

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        self.moved = []

    def _frozen(self):
        return self.model.predictor.parameters() if self.is_within(3) else ()

    def _update(self, loss, optimizer, lr_scheduler):
        before = copy.deepcopy([list(self.model.predictor.parameters()), list(self.model.backbone.parameters())])
        super()._update(loss, optimizer, lr_scheduler)
        now = self.model.predictor.parameters(), self.model.backbone.parameters()
        self.moved.append(
            [any(not torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in zip(before, now, strict=True)]
        )


@pytest.mark.parametrize("optimizer", ["adamw", LARS])
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_frozen_parameters_are_moved_by_neither_momentum_nor_weight_decay(optimizer, precision):
    supervisor = FrozenHead(tiny_images(), backbone=TinyBackbone(), seed=0)
    supervisor.supervise(**SETTINGS, optimizer=optimizer, weight_decay=0.5, precision=precision)
    assert supervisor.moved == [[False, True]] * 3 + [[True, True]] * 3


class Idle:
    """A schedule that does nothing."""

    def __init__(self, optimizer):
        self.step = self.state_dict = lambda: {}
        self.load_state_dict = lambda state: None


class Bare:
    """Steps like SGD, without hooks."""

    def __init__(self, parameters, lr):
        self.inner = torch.optim.SGD(parameters, lr=lr)
        self.param_groups, self.defaults = self.inner.param_groups, self.inner.defaults
        for name in ("step", "zero_grad", "state_dict", "load_state_dict"):
            setattr(self, name, getattr(self.inner, name))


def test_an_optimizer_without_hooks_is_refused():
    with pytest.raises(
        TypeError, match="freezing parameters acts before or after the steps of a torch.optim.Optimizer"
    ):
        rotatenet(FrozenHead).supervise(**SETTINGS, optimizer=Bare, lr_scheduler=Idle)
    with pytest.raises(TypeError, match="a schedule of weight_decay acts before or after the steps"):
        rotatenet().supervise(**SETTINGS, optimizer=Bare, lr_scheduler=Idle, weight_decay=RISING)


def test_a_closure_whose_gradients_come_too_late_is_refused():
    class Closure(FrozenHead):
        def _update(self, loss, optimizer, lr_scheduler):
            optimizer.step(lambda: loss)

    with pytest.raises(TypeError, match="freezing parameters looks at the gradients before optimizer.step"):
        rotatenet(Closure).supervise(**SETTINGS)


def test_a_duration_is_counted_in_steps_of_the_run():
    assert RotateNetSupervisor(tiny_images(), backbone=TinyBackbone()).is_within(0)  # no run yet

    class Within(RotateNetSupervisor):
        found = ()

        def _after_step(self):
            self.found = [*self.found, (self.is_within(2), self.is_within("1 epochs"), self.is_within(0.5))]

    assert rotatenet(Within).supervise(**SETTINGS).found == [(True, True, True)] * 2 + [
        (False, False, True),
        *[(False, False, False)] * 3,
    ]
