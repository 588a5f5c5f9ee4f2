"""Values that are not finite: nothing bad is stored over a good file, and a run can skip them or go back."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import superself
from superself.training import finite, read_checkpoint

from cases import CASES, TinyBackbone, tiny_images

NAMES = ("RotateNet", "MomentumContrast", "InstanceDiscrimination", "BiGan")
FOUR = [next(case for case in CASES if case.algorithm.__name__ == f"{name}Supervisor") for name in NAMES]
SHORT = {"epochs": 2, "batch_size": 4, "name": "run", "progress": False}  # 4 steps per epoch

four = pytest.mark.parametrize("case", FOUR, ids=NAMES)


def poisoned(case, at, what="gradient", **methods):
    """A supervisor whose loss, or whose gradient with a finite loss, is NaN in the steps ``at``, counted from 0."""

    class Poisoned(case.algorithm):
        calls = -1

        def _forward(self, data):
            self.calls += 1
            loss = super()._forward(data)
            if self.calls in at:
                loss = loss * torch.nan if what == "loss" else loss * 1
                loss.register_hook(lambda gradient: gradient * torch.nan)
            return loss

    return type("Poisoned", (Poisoned,), methods)(
        tiny_images(), **{"backbone": case.backbone(), "seed": 0, **case.arguments}
    )


def state_of(supervisor):
    return {name: tensor.clone() for name, tensor in supervisor.state_dict().items()}


def differing(one, other):
    return [name for name in one if not torch.equal(one[name], other[name])]


def is_finite(state):
    return all(tensor.isfinite().all() for tensor in state.values() if tensor.is_floating_point())


def rows(name="run"):
    with open(f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def warnings_of(name="run"):
    return yaml.safe_load(Path(f"{name}.yaml").read_text())["warnings"]


# ---- stop ------------------------------------------------------------------------------------------------------------


@four
@pytest.mark.parametrize("resumed", [False, True])
def test_a_nan_gradient_in_the_last_step_is_not_stored_over_the_good_file(case, resumed):
    if resumed:
        poisoned(case, ()).supervise(**SHORT | {"epochs": 1})
    supervisor = poisoned(case, (3,) if resumed else (7,))
    message = r"state \S+ .*not finite in epoch 2, step 8: run\.pt keeps the last good epoch"
    with pytest.raises(FloatingPointError, match=message):
        supervisor.supervise(**SHORT, resume=resumed)
    stored = read_checkpoint("run")
    assert stored["epoch"] == 1 and is_finite(stored["model"]) and len(rows()) == 1


def test_weights_that_are_not_finite_in_the_only_epoch_are_never_stored():
    with pytest.raises(FloatingPointError, match="nothing has been stored yet.*try a lower lr"):
        poisoned(FOUR[0], (3,)).supervise(**SHORT | {"epochs": 1})
    assert not Path("run.pt").exists()


class OwnLoop(superself.RotateNetSupervisor):
    """Never calls end_epoch, so only the end of the run stores it."""

    def _epochs(self, epochs, train_loader, optimizer, lr_scheduler):
        for data in self.run.batches(train_loader):
            self._update(self._forward(data), optimizer, lr_scheduler)
        with torch.no_grad():
            next(self.model.parameters()).fill_(torch.inf)


def test_the_end_of_a_run_checks_the_weights_too():
    with pytest.raises(FloatingPointError, match="not finite"):
        OwnLoop(tiny_images(), backbone=TinyBackbone(), seed=0).supervise(**SHORT)
    assert not Path("run.pt").exists()


def test_a_buffer_that_holds_infinities_on_purpose_is_stored():
    backbone = TinyBackbone()
    backbone.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    superself.RotateNetSupervisor(tiny_images(), backbone=backbone, seed=0).supervise(**SHORT)
    assert read_checkpoint("run")["epoch"] == 2


# ---- skip ------------------------------------------------------------------------------------------------------------


def record_states(case, at, what, **methods):
    """The states before and after each step of a run with on_nan="skip"."""
    states = []
    supervisor = poisoned(case, at, what, **methods)
    end_step = superself.training.Run.end_step

    def record(run, loss):
        end_step(run, loss)
        states.append(state_of(supervisor))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(superself.training.Run, "end_step", record)
        supervisor.supervise(**SHORT, on_nan="skip")
    return supervisor, states


@four
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_skipped_step_changes_nothing(case, what):
    supervisor, states = record_states(case, (2, 7), what)
    assert differing(states[1], states[2]) == [] and differing(states[6], states[7]) == []
    assert differing(states[0], states[1]) and differing(states[2], states[3])
    assert supervisor.step == 8 and is_finite(state_of(supervisor))
    assert [row["skipped_steps"] for row in rows()] == ["1", "1"]
    assert [text.partition(":")[0] for text in warnings_of()] == ["Epoch 1", "Epoch 2"]
    assert "1 of 4 steps were skipped" in warnings_of()[0]


def own_update(self, loss, optimizer, lr_scheduler):
    loss.backward()
    nn.utils.clip_grad_norm_(self.parameters(), 1.0)
    optimizer.step()
    lr_scheduler.step()
    optimizer.zero_grad(set_to_none=False)


@four
def test_a_skipped_step_changes_nothing_with_any_update_of_a_users(case):
    _, states = record_states(case, (2,), "gradient", _update=own_update)
    assert differing(states[1], states[2]) == [] and differing(states[2], states[3])


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "lars", torch.optim.RMSprop, torch.optim.Adagrad])
def test_a_skipped_step_changes_nothing_with_any_optimizer(optimizer):
    supervisor, states = poisoned(FOUR[0], (5,)), []
    before_step = superself.training.Run.end_step

    def record(run, loss):
        before_step(run, loss)
        states.append(state_of(supervisor))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(superself.training.Run, "end_step", record)
        supervisor.supervise(**SHORT, on_nan="skip", optimizer=optimizer)
    assert differing(states[4], states[5]) == [] and differing(states[5], states[6])


class NotANumberImage(superself.MomentumContrastSupervisor):
    """One image of the third batch is NaN, and with it all statistics of batch norm."""

    def _forward(self, data):
        if self.step == 2:
            data.images = data.images.float()
            data.images[0] = torch.nan
        return super()._forward(data)


def test_a_nan_image_leaves_no_trace_in_batch_norm_or_in_the_queue():
    supervisor = NotANumberImage(tiny_images(), backbone=TinyBackbone(), seed=0, queue_size=32)
    supervisor.supervise(**SHORT, on_nan="skip")
    assert is_finite(state_of(supervisor)) and int(supervisor.queue.enqueued) == 7 * 4


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_run_that_skips_too_much_stops_and_says_why(what):
    with pytest.raises(
        FloatingPointError, match=r'on_nan="skip" has left out 4 of the 4 steps of epoch 1 \(limits: 20 in a row, 10%'
    ):
        poisoned(FOUR[0], range(100), what).supervise(**SHORT, on_nan="skip")


def test_skipped_steps_in_a_row_are_counted_over_epochs(monkeypatch):
    monkeypatch.setattr(finite, "SKIPS_IN_A_ROW", 3)
    with pytest.raises(FloatingPointError, match=r"has left out 2 of the 4 steps of epoch 2 \(limits: 3 in a row"):
        poisoned(FOUR[0], (3, 4, 5)).supervise(**SHORT, on_nan="skip")


@four
def test_a_run_without_nan_is_the_same_with_every_policy(case):
    plain = state_of(poisoned(case, ()).supervise(**SHORT))
    for policy in ("skip", "rollback"):
        assert differing(plain, state_of(poisoned(case, ()).supervise(**SHORT | {"name": policy}, on_nan=policy))) == []


# ---- rollback --------------------------------------------------------------------------------------------------------


@four
@pytest.mark.parametrize("at, what", [(0, "gradient"), (2, "loss"), (5, "gradient"), (7, "loss")])
def test_rollback_goes_back_to_the_last_state_and_finishes(case, at, what):
    supervisor = poisoned(case, (at,), what).supervise(**SHORT, on_nan="rollback")
    began = 4 * (at // 4)
    assert supervisor.step == 8 and is_finite(state_of(supervisor))
    assert supervisor.calls + 1 == 8 + (at - began) + 1  # the steps since the epoch began were done again
    assert [row["rollbacks"] for row in rows()] == ["1" if began == 0 else "0", "1"]
    (text,) = warnings_of()
    assert f"gone back to the state after step {began}, with other random numbers (rollback 1 of at most 5)" in text


def test_rollback_goes_back_to_what_was_stored_within_the_epoch():
    supervisor = poisoned(FOUR[0], (3,))
    supervisor.supervise(**SHORT, on_nan="rollback", save_every=1e-9)
    assert supervisor.calls + 1 == 8 + 1 and "the state after step 3" in warnings_of()[0]


def test_rollback_draws_other_random_numbers():
    """The loss depends on a random number, and only one that differs from the first can pass."""

    class Unlucky(superself.RotateNetSupervisor):
        drawn = ()

        def _forward(self, data):
            value = torch.rand(()).item()
            if self.step == 1:
                self.drawn = (*self.drawn, value)
            loss = super()._forward(data)
            return loss * torch.nan if self.step == 1 and value == self.drawn[0] else loss

    supervisor = Unlucky(tiny_images(), backbone=TinyBackbone(), seed=0).supervise(**SHORT, on_nan="rollback")
    assert len(supervisor.drawn) == 2 and supervisor.run.guard.rollbacks == 1


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_rollback_gives_up_after_five_times(what):
    with pytest.raises(
        FloatingPointError, match=r'on_nan="rollback" has gone back 5 times in this run. The (loss|grad)'
    ):
        poisoned(FOUR[0], range(2, 100), what).supervise(**SHORT, on_nan="rollback")


def test_rollback_recovers_from_weights_that_are_not_finite():
    """An update that overflows although loss and gradients are finite."""

    class Overflows(superself.RotateNetSupervisor):
        done = False

        def _after_step(self):
            if self.step == 3 and not self.done:
                self.done = True
                with torch.no_grad():
                    next(self.model.parameters()).fill_(torch.inf)

    supervisor = Overflows(tiny_images(), backbone=TinyBackbone(), seed=0).supervise(**SHORT, on_nan="rollback")
    assert supervisor.step == 8 and is_finite(state_of(supervisor)) and supervisor.run.guard.rollbacks == 1


def test_the_number_of_rollbacks_and_skipped_steps_is_stored():
    poisoned(FOUR[0], (1,)).supervise(**SHORT, on_nan="rollback")
    resumed = poisoned(FOUR[0], ()).supervise(**SHORT | {"epochs": 3}, on_nan="rollback", resume=True)
    assert resumed.run.guard.rollbacks == 1


def test_stop_never_fetches_a_value_at_a_step(monkeypatch):
    """On an accelerator this would wait for it; here the guard is asked as if the loss were on one."""
    supervisor = poisoned(FOUR[0], ())
    fetched = []
    monkeypatch.setattr(finite.NonFiniteGuard, "require_finite_loss", lambda self, loss: fetched.append(loss))
    supervisor.run = superself.training.Run(supervisor, superself.training.Settings(**SHORT))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert supervisor.run.guard.accepts_loss(torch.ones((), device="meta"))
    assert fetched == [] and supervisor.run.guard.accepts_gradients(None)


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_float16_gradients_that_are_never_finite_end_the_run(policy):
    supervisor = poisoned(FOUR[0], range(100))
    with pytest.raises(FloatingPointError, match="gradient is not finite in 20 steps in a row"):
        supervisor.supervise(**{**SHORT, "epochs": 8}, precision="16-mixed", on_nan=policy)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_the_schedule_goes_on_after_a_skipped_step(what):
    supervisor = poisoned(FOUR[0], {1}, what)
    supervisor.supervise(**SHORT, lr_scheduler="cosine", on_nan="skip")
    assert supervisor.run.lr_scheduler.last_epoch == 8  # steps


def test_after_a_rollback_each_process_draws_views_of_its_own(monkeypatch):
    seeds = []
    for rank in (0, 1):
        monkeypatch.setattr(finite, "rank", lambda rank=rank: rank)
        supervisor = poisoned(FOUR[0], {1}, "loss")
        supervisor.supervise(**SHORT, on_nan="rollback", overwrite=True)
        seeds.append(supervisor.generator.initial_seed())
    assert seeds[1] == seeds[0] + 1


@pytest.mark.parametrize(("option", "value"), [("clip", 1.0), ("on_nan", "skip"), ("precision", "16-mixed")])
def test_options_that_look_at_gradients_refuse_steps_with_a_closure(option, value):
    class WithClosure(superself.RotateNetSupervisor):
        def _update(self, loss, optimizer, lr_scheduler):
            loss.backward()
            optimizer.step(lambda: loss)
            lr_scheduler.step()

    supervisor = WithClosure(tiny_images(), backbone=TinyBackbone(), seed=0)
    with pytest.raises(TypeError, match=f"{option}=.* looks at the gradients before optimizer.step"):
        supervisor.supervise(**SHORT, **{option: value})
