from __future__ import annotations

import functools
import inspect
import re

import numpy as np
import pytest
import torch
from torch import nn

import superself.augment
from superself.augment import Transform, recipe
from superself.augment.recipes import RECIPES
from superself.networks import build_backbone
from superself.training import Schedule
from superself.training.checkpoint import is_plain
from superself.training.identity import differences, identify, unchanged

from cases import TinyBackbone

SCALE = 2.0


def scaled(images, factor=1.0):
    """Some text."""
    return images * factor * SCALE


def same_but_for_its_text(images, factor=1.0):
    """Another text."""

    return images * factor * SCALE


class Jitter:
    def __init__(self, strength):
        self.strength = strength

    def __call__(self, images):
        return images


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_made_twice_have_one_identity_without_addresses(name):
    one, other = (identify(recipe(name, 64)) for _ in range(2))
    assert one == other and is_plain(one) and "0x" not in str(one)


def changed_arguments():
    """Every number or switch among the arguments of every transform, with another value."""
    for name, cls in vars(superself.augment).items():
        if inspect.isclass(cls) and issubclass(cls, Transform):
            for parameter in inspect.signature(cls).parameters.values():
                if isinstance(parameter.default, (bool, int, float, tuple)):
                    yield pytest.param(cls, parameter.name, parameter.default, id=f"{name}-{parameter.name}")


REQUIRED = {
    "size": 8,
    "transforms": [superself.augment.RandomGrayscale()],
    "large": [superself.augment.RandomGrayscale()],
}


@pytest.mark.parametrize(("cls", "name", "default"), list(changed_arguments()))
def test_the_identity_of_a_transform_shows_every_argument(cls, name, default):
    parameters = inspect.signature(cls).parameters.values()
    required = {p.name: REQUIRED.get(p.name, nn.Identity()) for p in parameters if p.default is p.empty}
    required |= {"small": superself.augment.RandomGrayscale()} if "small" in required else {}
    if isinstance(default, bool):
        other = not default
    elif isinstance(default, tuple):
        other = (default[0] + 1 if isinstance(default[0], int) else default[0] / 2 + 0.1, default[1])
    else:
        other = default + 1 if isinstance(default, int) else default / 2 + 0.1
    one, same, changed = (identify(cls(**required, **given)) for given in ({}, {name: default}, {name: other}))
    assert one == same and differences(one, changed, "augment")


def test_a_function_is_identified_by_its_code_and_not_by_its_text_or_place():
    one, other = identify(scaled), identify(same_but_for_its_text)
    assert one["code"] == other["code"] and one["holds"] == other["holds"] == {"SCALE": 2.0}
    assert differences(one, other, "loss") == [f"loss: was {name(scaled)}, is now {name(same_but_for_its_text)}"]


def name(function):
    return f"the function {function.__module__}.{function.__name__}"


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        (lambda x: x + 1, lambda x: x + 2, "f: the code of the function .*<lambda> has changed"),
        (lambda x: x.cos(), lambda x: x.sin(), "f: the code of the function .*<lambda> has changed"),
        (lambda x: [x + 1 for x in x], lambda x: [x + 2 for x in x], "f: the code"),
        (lambda x: x in {1, 2, 3}, lambda x: x in {1, 2, 4}, "f: the code"),
        (lambda x, y=1: x, lambda x, y=2: x, r"f.defaults: was \(\(1\), None\), is now \(\(2\), None\)|f.defaults"),
        (Jitter(1.0), Jitter(2.0), "f.strength: was 1.0, is now 2.0"),
        (Jitter(1.0).__call__, Jitter(2.0).__call__, r"f.with\[0\].strength: was 1.0, is now 2.0"),
        (Jitter, dict, "f: was .*Jitter, is now dict"),
        (functools.partial(scaled, factor=2), scaled, r"f: was the function .*scaled\(factor=2\), is now the function .*scaled"),
        (torch.relu, torch.sigmoid, "f: was the function .*relu, is now the function .*sigmoid"),
        (nn.functional.mse_loss, nn.functional.l1_loss, "f: was the function torch.nn.functional.mse_loss, is now"),
        (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1), "f.label_smoothing: was 0.0, is now 0.1"),
        (nn.Linear(2, 3), nn.Linear(2, 4), r"f.shapes.weight: was \(3, 2\), is now \(4, 2\)"),
        (nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU(), nn.ReLU()), "f: was made of 0, is now of 0, 1"),
        (nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU()), "f.0: was torch.*ReLU, is now torch.*GELU"),
        (Schedule(1.0, 0.0), Schedule(1.0, 0.1), "f.end: was 0.0, is now 0.1"),
        (torch.zeros(3), torch.ones(3), r"f: was tensor\(\[0.0, 0.0, 0.0\]\), is now tensor\(\[1.0, 1.0, 1.0\]\)"),
        (torch.zeros(300), torch.ones(300), "f: other values"),
        (torch.zeros(3), torch.zeros(4), "f"),
        ({"a": 1}, {"a": 1, "b": 2}, "f.b: was 'not set', is now 2"),
        (True, 1, "f: was True, is now 1"),
        (None, 0, "f: was None, is now 0"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_what_differs_is_named_with_both_values(was, now, message):
    (found,) = differences(identify(was), identify(now), "f")[:1]
    assert re.fullmatch(f"({message}).*", found), found
    assert not differences(identify(was), identify(was), "f")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1, 2], (1, 2)),
        (np.float64(0.5), 0.5),
        (range(3), [0, 1, 2]),
        (float("nan"), float("nan")),
        (lambda x: x + 1, lambda x: x + 1),
        (Jitter(1.0), Jitter(1.0)),
        (nn.BatchNorm2d(3), nn.SyncBatchNorm(3)),  # sync_batchnorm=True on several devices and on one
        (TinyBackbone(), TinyBackbone()),
        ({1, 2, 3}, {3, 2, 1}),
        (np.arange(3), np.arange(3)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_acts_alike_has_the_same_identity(one, other):
    assert not differences(identify(one), identify(other), "f")


def test_the_code_of_another_version_of_python_is_not_compared():
    def of(function, python):
        return {**identify(function), "python": python}

    assert not differences(of(lambda x: x + 1, "cpython-310"), of(lambda x: x + 2, "cpython-312"), "f")
    assert differences(of(lambda x: x + 1, "cpython-310"), of(lambda x: x + 2, "cpython-310"), "f")


def test_attributes_that_another_release_of_torch_adds_are_not_compared():
    was, now = identify(nn.ReLU()), identify(nn.ReLU())
    now["attributes"]["new"] = 3
    assert not differences(was, now, "f") and not differences(now, was, "f")


def test_what_changes_in_training_is_state_and_no_longer_compared():
    def counting():
        calls = 0

        def count():
            nonlocal calls
            calls += 1
            return step.strength

        return count

    step = Jitter(1.0)
    count, network = counting(), nn.Sequential(nn.ReLU(), nn.ReLU())
    network[1].calls = 0
    network.register_buffer("seen", torch.zeros(2), persistent=False)
    start = identify([count, network])
    count()
    network[1].calls += 1
    network.seen += 1
    kept = [unchanged(before, after) for before, after in zip(start, identify([count, network]), strict=True)]
    assert "calls" not in str(kept) and "seen" not in str(kept) and "strength" in str(kept)
    network[1].inplace = True
    assert differences(kept[1], identify(network), "f") == ["f.1.inplace: was False, is now True"]


def test_objects_that_hold_each_other_end():
    one, other = Jitter(1.0), Jitter(2.0)
    one.other, other.other = other, one
    assert is_plain(identify(one)) and identify(one) == identify(one)


def test_the_identity_of_a_large_network_is_small():
    found = identify(build_backbone("resnet18", (3, 32, 32)))
    assert is_plain(found) and len(str(found)) < 100_000
