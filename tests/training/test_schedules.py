import dataclasses
import functools
import math

import pytest
import torch
import yaml
from torch import nn
from torch.optim import lr_scheduler as torch_schedulers

from superself.training import (
    Schedule,
    check_bounds,
    check_lr_scheduler,
    constant,
    cosine,
    epochs,
    make_lr_scheduler,
    scheduled,
    warmup_cosine,
)

STEPS, STEPS_PER_EPOCH = 20, 5


def sgd(*groups, lr=2.0):
    groups = groups or ({},)
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], **group} for group in groups], lr=lr)


def rates(lr_scheduler, optimizer=None, total_steps=STEPS, **options):
    """The learning rate of each group before each step, and after the last one."""
    optimizer = optimizer or sgd()
    scheduler = make_lr_scheduler(lr_scheduler, optimizer, total_steps, STEPS_PER_EPOCH, **options)
    seen = []
    for _ in range(total_steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return [*seen, [group["lr"] for group in optimizer.param_groups]]


def first_rates(*arguments, **options):
    return [values[0] for values in rates(*arguments, **options)]


# ---- values ----------------------------------------------------------------------------------------------------------


def test_cosine_worked_by_hand():
    assert cosine(1.0, 0.0, 0.0) == 1.0
    assert cosine(1.0, 0.0, 0.5) == pytest.approx(0.5)
    assert cosine(0.996, 1.0, 1.0) == 1.0
    assert cosine(1.0, 0.2, 7.0) == pytest.approx(0.2)


def slow_value(schedule, step, warmup, total):
    """Each shape written out for schedules whose durations are steps."""
    if step < warmup:
        increment = (schedule.start - schedule.warmup_start) / (warmup + 1)
        return schedule.warmup_start + sum(increment for _ in range(step + 1))
    rest = total - warmup
    if schedule.shape == "cosine":
        angle = math.pi * (step - warmup) / rest
        return schedule.end + 0.5 * (schedule.start - schedule.end) * (1 + math.cos(angle))
    if schedule.shape == "linear":
        return schedule.start + sum((schedule.end - schedule.start) / rest for _ in range(step - warmup))
    if schedule.shape == "exponential":
        end = schedule.end or 0.0
        return end + (schedule.start - end) * math.exp(-math.log(2) * (step - warmup) / schedule.half_life)
    value = schedule.start
    for earlier in range(1, step + 1):
        if earlier in schedule.milestones or (schedule.every and earlier % schedule.every == 0):
            value *= schedule.factor
    return value


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"end": 0.1, "shape": "cosine"},
        {"end": 2.0, "shape": "linear"},
        {"shape": "constant"},
        {"shape": "step", "milestones": (4, 9), "factor": 0.5},
        {"shape": "step", "every": 6, "factor": 0.1},
        {"shape": "exponential", "half_life": 4},
        {"shape": "exponential", "half_life": 4, "end": 0.2},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_schedule_equals_the_formula_written_out(options, warmup):
    schedule = Schedule(0.8, warmup=warmup, warmup_start=0.05, **options)
    for step in range(STEPS + 1):
        assert schedule(step, STEPS) == pytest.approx(slow_value(schedule, step, warmup, STEPS)), step


@pytest.mark.parametrize("schedule", [Schedule(1.0, 0.3), Schedule(1.0, 0.3, "linear", warmup=0.1)])
def test_schedule_reaches_its_end_and_stays_there(schedule):
    assert schedule(STEPS, STEPS) == pytest.approx(0.3) and schedule(STEPS + 7, STEPS) == pytest.approx(0.3)


@pytest.mark.parametrize("duration", [10, 0.5, epochs(2), "2 epochs", "2.0 epochs"])
def test_durations_are_steps_fractions_of_the_run_or_epochs(duration):
    staircase = Schedule(1.0, shape="step", milestones=[duration])
    assert [staircase(step, STEPS, STEPS_PER_EPOCH) for step in (0, 9, 10, 19)] == [1.0, 1.0, 0.1, 0.1]
    decay = Schedule(1.0, shape="exponential", half_life=duration)
    assert decay(10, STEPS, STEPS_PER_EPOCH) == 0.5 and decay(20, STEPS, STEPS_PER_EPOCH) == 0.25
    assert Schedule(1.0, shape="step", milestones=duration) == staircase
    rise = Schedule(1.0, shape="constant", warmup=duration)
    assert rise(9, STEPS, STEPS_PER_EPOCH) == pytest.approx(10 / 11) and rise(10, STEPS, STEPS_PER_EPOCH) == 1.0


def test_milestones_may_have_any_order_and_unit():
    schedule = Schedule(1.0, shape="step", milestones=(epochs(3), 0.5, 5), factor=0.5)
    assert [schedule(step, STEPS, STEPS_PER_EPOCH) for step in (4, 5, 10, 15)] == [1.0, 0.5, 0.25, 0.125]


def test_epochs_need_the_number_of_steps_in_one():
    with pytest.raises(ValueError, match="'2 epochs' can only be converted to steps with steps_per_epoch"):
        Schedule(1.0, shape="constant", warmup=epochs(2))(0, STEPS)


def test_schedule_is_plain_values_that_yaml_keeps():
    schedule = Schedule(0.1, shape="step", milestones=(epochs(3), 0.5, 40), warmup=2)
    stored = yaml.safe_load(yaml.safe_dump(dataclasses.asdict(schedule) | {"milestones": list(schedule.milestones)}))
    assert Schedule(**stored) == schedule
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.start = 0.2


def test_scheduled_takes_a_number_or_a_schedule():
    assert scheduled(0.99, 7, STEPS) == 0.99
    assert scheduled(Schedule(0.9, 1.0, "linear"), 10, STEPS) == pytest.approx(0.95)
    assert scheduled(Schedule(1.0, shape="step", every=epochs(1)), 10, STEPS, STEPS_PER_EPOCH) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": "sine"}, "shape='sine' is unknown; pass one of cosine, linear"),
        ({}, "shape='cosine' needs end=.*or shape=\"constant\""),
        ({"end": 0.1, "shape": "constant"}, "end=0.1 is not used with shape='constant'"),
        ({"shape": "step"}, "needs exactly one of milestones= and every="),
        ({"shape": "step", "milestones": [1], "every": 2}, "needs exactly one of milestones= and every="),
        ({"end": 0.0, "every": 2}, "other shapes take neither"),
        ({"end": 0.0, "milestones": 1, "every": 2}, "other shapes take neither"),
        ({"shape": "exponential"}, "needs half_life="),
        ({"end": 0.0, "half_life": 3}, "other shapes do not take it"),
        ({"start": float("nan"), "end": 0}, "start=nan must be a finite number"),
        ({"start": "1", "end": 0}, "start='1' must be a finite number"),
        ({"end": 0.0, "factor": 0}, "factor=0 .* must be positive"),
        ({"end": 0.0, "warmup": 1.0}, "warmup=1.0 is not a duration; pass a number of steps"),
        ({"end": 0.0, "warmup": -1}, "warmup=-1 is not a duration"),
        ({"end": 0.0, "warmup": True}, "warmup=True is not a duration"),
        ({"end": 0.0, "warmup": "10 steps"}, "warmup='10 steps' is not a duration"),
        ({"end": 0.0, "warmup": "ten epochs"}, "warmup='ten epochs' is not a duration"),
        ({"shape": "step", "every": 0}, "every=0 is not a duration"),
        ({"shape": "step", "milestones": [5, None]}, "milestones=None is not a duration"),
    ],
)
def test_schedule_refuses_what_has_no_meaning(arguments, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**{"start": 1.0, **arguments})


@pytest.mark.parametrize(
    ("schedule", "bounds"),
    [
        (Schedule(0.996, 1.0), (0.996, 1.0)),
        (Schedule(0.07, shape="constant", warmup=5, warmup_start=0.04), (0.04, 0.07)),
        (Schedule(0.8, shape="step", milestones=(2, 4), factor=0.5), (0.2, 0.8)),
        (Schedule(0.8, shape="step", every=2), (0.0, 0.8)),
        (Schedule(0.8, shape="step", every=2, factor=2.0), (0.8, math.inf)),
        (Schedule(0.8, shape="exponential", half_life=2), (0.0, 0.8)),
    ],
)
def test_bounds_hold_every_value(schedule, bounds):
    assert schedule.bounds() == pytest.approx(bounds)
    assert all(bounds[0] - 1e-12 <= schedule(step, STEPS) <= bounds[1] + 1e-12 for step in range(STEPS + 1))


def test_a_hyper_parameter_outside_its_range_is_refused_with_and_without_a_schedule():
    check_bounds("momentum", 0.5, 0, 1)
    check_bounds("momentum", Schedule(0.9, 1.0), 0, 1)
    with pytest.raises(ValueError, match=r"momentum=1.5 must stay within \[0, 1\]"):
        check_bounds("momentum", 1.5, 0, 1)
    with pytest.raises(ValueError, match=r"momentum=Schedule\(start=0.9, end=1.1.* must stay within \[0, 1\]"):
        check_bounds("momentum", Schedule(0.9, 1.1), 0, 1)


# ---- learning rates --------------------------------------------------------------------------------------------------


def test_warmup_rises_evenly_and_the_cosine_falls_to_its_end():
    seen = first_rates(warmup_cosine(0.2, final=0.1))
    assert seen[:4] == pytest.approx([2 / 5, 4 / 5, 6 / 5, 8 / 5])
    assert seen[4] == 2.0 and all(a > b for a, b in zip(seen[4:], seen[5:], strict=False))
    assert seen[20] == pytest.approx(0.2)


def test_warmup_of_the_whole_run_is_refused_and_one_that_turns_out_too_long_is_reported():
    with pytest.raises(ValueError, match=r"warmup=1.0 is not a duration"):
        warmup_cosine(1.0)
    with pytest.warns(UserWarning, match=r"warm-up of 50 steps is not shorter than the run \(20 steps\)"):
        make_lr_scheduler(warmup_cosine(epochs(10)), sgd(), STEPS, STEPS_PER_EPOCH)


@pytest.mark.parametrize("lr_scheduler", [None, "constant", "Constant", constant])
def test_constant_stays(lr_scheduler):
    assert set(first_rates(lr_scheduler)) == {2.0}


def test_names_and_the_default():
    assert first_rates("cosine") == pytest.approx([2 * cosine(1, 0, k / STEPS) for k in range(STEPS + 1)])
    assert first_rates("warmup_cosine") == first_rates(warmup_cosine())
    assert first_rates(None, default="cosine") == first_rates("cosine")
    assert first_rates(None, default=Schedule(1.0, 0.0, "linear"))[10] == pytest.approx(1.0)
    assert first_rates("constant", default="cosine")[-1] == 2.0
    with pytest.raises(
        ValueError, match="lr_scheduler='cosin' is unknown; pass one of constant, cosine, warmup_cosine"
    ):
        check_lr_scheduler("cosin")


def test_schedule_multiplies_the_rate_of_each_group_and_spares_fixed_ones():
    optimizer = sgd({"lr": 1.0}, {"lr": 0.2}, {"lr": 0.5, "fixed_lr": True})
    seen = rates(Schedule(1.0, 0.0, "linear"), optimizer)
    assert seen[0] == [1.0, 0.2, 0.5] and seen[15] == pytest.approx([0.25, 0.05, 0.5])


def test_a_scheduler_that_ignores_fixed_rates_is_reported():
    with pytest.warns(UserWarning, match=r"ExponentialLR also changes .*\(predictor\)"):
        rates(
            functools.partial(torch_schedulers.ExponentialLR, gamma=0.5), sgd({"fixed_lr": True, "name": "predictor"})
        )


def test_restored_schedule_continues_where_it_was():
    whole = first_rates("warmup_cosine")
    optimizer = sgd()
    scheduler = make_lr_scheduler("warmup_cosine", optimizer, STEPS, STEPS_PER_EPOCH)
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    resumed = sgd()
    restored = make_lr_scheduler("warmup_cosine", resumed, STEPS, STEPS_PER_EPOCH)
    resumed.load_state_dict(optimizer.state_dict())
    restored.load_state_dict(scheduler.state_dict())
    seen = []
    for _ in range(7, STEPS):
        seen.append(resumed.param_groups[0]["lr"])
        resumed.step()
        restored.step()
    assert seen == whole[7:STEPS]


# ---- functions that make a scheduler -----------------------------------------------------------------------------------


class Maker:
    """Makes schedulers by a bound method and by being called."""

    def linear(self, optimizer, total_steps):
        return torch_schedulers.LambdaLR(optimizer, lambda step: 1 - step / total_steps)

    def __call__(self, optimizer, *, total_steps):
        return self.linear(optimizer, total_steps)


def linear(optimizer, total_steps):
    return Maker().linear(optimizer, total_steps)


def linear_over_epochs(optimizer, epochs, steps_per_epoch):
    assert (epochs, steps_per_epoch) == (4, 5)
    return linear(optimizer, epochs * steps_per_epoch)


@pytest.mark.parametrize(
    "factory",
    [
        linear,
        linear_over_epochs,
        Maker().linear,
        Maker(),
        lambda optimizer, total_steps: linear(optimizer, total_steps),
        lambda optimizer, *, total_steps=3: linear(optimizer, total_steps),
        lambda optimizer, power=1.0, total_steps=None: linear(optimizer, total_steps),
        functools.partial(linear),
        functools.partial(linear, total_steps=STEPS),
    ],
)
def test_run_length_is_passed_by_name(factory):
    assert first_rates(factory) == pytest.approx([2 * (1 - k / STEPS) for k in range(STEPS + 1)])


@pytest.mark.parametrize(
    ("factory", "after"),
    [
        (functools.partial(torch_schedulers.ExponentialLR, gamma=0.5), 2 * 0.5**STEPS),
        (functools.partial(torch_schedulers.CosineAnnealingLR, T_max=STEPS), 0.0),
        (torch_schedulers.ConstantLR, 2.0),
        (lambda *arguments: torch_schedulers.ExponentialLR(*arguments, gamma=0.5), 2 * 0.5**STEPS),
        (lambda optimizer, **options: torch_schedulers.ExponentialLR(optimizer, gamma=0.5, **options), 2 * 0.5**STEPS),
    ],
)
def test_functions_of_the_optimizer_alone(factory, after):
    assert first_rates(factory)[-1] == pytest.approx(after, abs=1e-12)


def test_one_cycle_gets_the_steps_of_the_run_unless_the_user_chose_them():
    one_cycle = functools.partial(torch_schedulers.OneCycleLR, max_lr=1e-2)
    seen = first_rates(one_cycle, sgd({"momentum": 0.9}))
    assert max(seen) == pytest.approx(1e-2, rel=0.05) and seen[STEPS - 1] == pytest.approx(1e-2 / 25 / 1e4)
    optimizer = sgd({"momentum": 0.9})
    scheduler = make_lr_scheduler(functools.partial(one_cycle, epochs=10, steps_per_epoch=9), optimizer, 20, 5)
    assert scheduler.total_steps == 90
    scheduler = make_lr_scheduler(functools.partial(one_cycle, total_steps=70), optimizer, 20, 5)
    assert scheduler.total_steps == 70


@pytest.mark.parametrize(
    ("factory", "name", "missing"),
    [
        (torch_schedulers.ExponentialLR, "ExponentialLR", "gamma"),
        (torch_schedulers.CosineAnnealingLR, "CosineAnnealingLR", "T_max"),
        (torch_schedulers.OneCycleLR, "OneCycleLR", "max_lr"),
        (lambda optimizer, steps: linear(optimizer, steps), "f", "steps"),
        (lambda optimizer, total_steps, /: linear(optimizer, total_steps), "f", "total_steps"),
        (functools.partial(lambda optimizer, a, b: None, a=1), "f", "b"),
        (Maker.linear, "linear", "optimizer"),
    ],
)
def test_other_required_parameters_are_an_error_that_says_how_to_bind_them(factory, name, missing):
    with pytest.raises(TypeError, match=f"lr_scheduler={name} needs {missing}") as error:
        make_lr_scheduler(factory, sgd(), STEPS, STEPS_PER_EPOCH)
    assert f"functools.partial({name}, {missing}=...)" in str(error.value)
    assert "lambda optimizer, total_steps: CosineAnnealingLR(optimizer, T_max=total_steps)" in str(error.value)


@pytest.mark.parametrize("factory", [lambda: None, lambda total_steps: None, lambda *, optimizer: None])
def test_the_first_argument_must_be_the_optimizer(factory):
    with pytest.raises(TypeError, match="lr_scheduler=f must take the optimizer as its first argument"):
        check_lr_scheduler(factory)


@pytest.mark.parametrize("given", [3, torch_schedulers.StepLR(sgd(), 1)])
def test_objects_that_cannot_be_called_are_refused(given):
    with pytest.raises(
        TypeError, match=f"lr_scheduler is a {type(given).__name__} object, but .* pass a class or a function"
    ):
        check_lr_scheduler(given)


def test_results_that_cannot_be_stepped_are_refused():
    with pytest.raises(TypeError, match=r"lr_scheduler=f returned None, which has no step\(\)"):
        rates(lambda optimizer: None)
    with pytest.raises(TypeError, match=r"lr_scheduler=f returned a float object, which has no step\(\)"):
        rates(lambda optimizer: 1.0)
    with pytest.raises(TypeError, match=r"returned a ReduceLROnPlateau, whose step\(\) needs metrics"):
        rates(torch_schedulers.ReduceLROnPlateau)
