"""A resumed run is the run that was stored: whatever else determines its weights is refused, whatever does not may change."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

import superself
from superself import BiGanSupervisor, InstanceDiscriminationSupervisor, MomentumContrastSupervisor, RotateNetSupervisor
from superself.augment import ColorJitter, Compose, GaussianBlur, RandomHorizontalFlip, recipe
from superself.augment.recipes import RECIPES
from superself.networks import CombinedNet, build_backbone
from superself.training import Schedule, Tracker, read_checkpoint, warmup_cosine
from superself.training.hyper_parameters import declared
from superself.training.identity import differences, identity, unchanged

from cases import CASES, TinyBackbone, tiny_halves, tiny_images

SHORT = {"epochs": 1, "batch_size": 8, "progress": False}
LONGER = SHORT | {"epochs": 2, "resume": True}
BY_CLASS = {case.algorithm: case for case in CASES}
FOUR = [RotateNetSupervisor, MomentumContrastSupervisor, InstanceDiscriminationSupervisor, BiGanSupervisor]


class OtherBackbone(TinyBackbone):
    """The same weights and shapes, in another class."""


class Scaled(TinyBackbone):
    """A number that is neither a weight nor shown by repr."""

    def __init__(self, factor):
        super().__init__()
        self.factor, self.calls = factor, 0

    def forward(self, images):
        self.calls += 1  # state, which a resumed run need not share
        return self.factor * super().forward(images)


def stack(items):
    return torch.stack([item.image for item in items])


def mirrored(items):
    return torch.stack([item.image.flip(-1) for item in items])


def scheduler(gamma):
    return lambda optimizer: StepLR(optimizer, 1, gamma)


def sgd(momentum):
    return lambda parameters, lr: SGD(parameters, lr, momentum=momentum)


def weighted(weight):
    def loss(*arguments):
        return weight * arguments[0].square().mean()

    return loss


def view(factor):
    return lambda images: images * factor


def names_of(value):
    return ",".join(value) or "default" if isinstance(value, dict) else ""


def make(algorithm, dataset=None, **arguments):
    """A supervisor on the CPU; what has weights is copied, so that no test trains a network of the tables."""
    if algorithm.n_views == 2 and "collate_fn" in arguments:
        arguments["collate_fn"] = functools.partial(twice, arguments["collate_fn"])
    return BY_CLASS[algorithm].make(dataset, **copy.deepcopy(arguments))


def twice(collate_fn, items):
    return {"image": [collate_fn(items)] * 2}


# ---- what a resumed run must share -----------------------------------------------------------------------------------

ARGUMENTS = [  # of the constructor: as they were, as they are now, what the message says
    ({}, {"normalize": (0.5, 0.2)}, r"normalize: was None, is now \(0.5, 0.2\)"),
    ({}, {"view_size": 12}, r"view_size: was None, is now \(12, 12\)"),
    ({}, {"image_size": 12}, r"image_size: was \(16, 16\), is now \(12, 12\)"),
    ({}, {"seed": 1}, "seed: was 0, is now 1"),
    ({}, {"augment": "plain"}, "augment: was .*, is now 'plain'"),
    ({}, {"augment": ColorJitter(0.5)}, "augment: was .*, is now superself.augment.colour.ColorJitter"),
    ({}, {"backbone": OtherBackbone()}, "backbone: was cases.TinyBackbone, is now .*OtherBackbone"),
    ({}, {"backbone": TinyBackbone().requires_grad_(False)}, "backbone.layers.0.frozen: was 'not set', is now"),
    ({}, {"loss": weighted(2.0)}, "loss: was None, is now the function loss"),
    ({}, {"collate_fn": stack}, "collate_fn: was None, is now .*stack"),
    ({}, {"dataset": tiny_images(seed=1)}, r"data set: different images \(same number, 16\)"),
    ({}, {"dataset": tiny_images().flip(0)}, r"data set: different images \(same number, 16\)"),
    ({}, {"dataset": tiny_images(20)}, "images: was 16, is now 20"),
    (
        {"augment": ColorJitter(0.4), "loss": weighted(1.0), "collate_fn": stack, "backbone": Scaled(1.0)},
        {"augment": ColorJitter(0.5), "loss": weighted(2.0), "collate_fn": mirrored, "backbone": Scaled(2.0)},
        "augment.factors: was .*; backbone.factor: was 1.0, is now 2.0; loss.weight: was 1.0, is now 2.0; "
        "collate_fn.*: was the function .*stack, is now the function .*mirrored",
    ),
    ({"augment": view(1.0)}, {"augment": view(0.5)}, "augment.factor: was 1.0, is now 0.5"),
    (
        {"augment": lambda images: images.flip(2)},
        {"augment": lambda images: images.flip(3)},
        "augment: the code of the function .*<lambda> has changed",
    ),
]
SETTINGS = [
    ({}, {"lr": 2e-3}, "lr: was 0.001, is now 0.002"),
    ({}, {"batch_size": 4}, "batch_size: was 8, is now 4"),
    ({}, {"shuffle": False}, "shuffle: was True, is now False"),
    ({}, {"weight_decay": 0.1}, "weight_decay: was None, is now 0.1"),
    ({}, {"optimizer": "adamw"}, "optimizer: was torch.optim.adam.Adam, is now torch.optim.adamw.AdamW"),
    ({}, {"lr_scheduler": "cosine"}, "lr_scheduler.end: was None, is now 0.0; lr_scheduler.shape: was 'constant', is now"),
    ({}, {"precision": "bf16-mixed"}, "precision: was '32-true', is now 'bf16-mixed'"),
    ({}, {"accumulate": 2}, "accumulate: was 1, is now 2"),
    ({}, {"micro_batch": 4}, "micro_batch: was None, is now 4"),
    ({}, {"clip": 1.0}, "clip: was None, is now 1.0"),
    ({}, {"average": 0.9}, "average: was None, is now 0.9"),
    ({}, {"sync_batchnorm": True}, "sync_batchnorm: was False, is now True"),
    ({}, {"seed": 1}, "seed: was 0, is now 1"),
    (
        {"optimizer": functools.partial(SGD, momentum=0.9), "lr_scheduler": warmup_cosine(0.1)},
        {"optimizer": functools.partial(SGD, momentum=0.5), "lr_scheduler": warmup_cosine(0.2)},
        "optimizer.arguments.momentum: was 0.9, is now 0.5; lr_scheduler.warmup: was 0.1, is now 0.2",
    ),
    (
        {"optimizer": functools.partial(SGD, momentum=0.9), "lr_scheduler": functools.partial(StepLR, step_size=1)},
        {"optimizer": SGD, "lr_scheduler": functools.partial(StepLR, step_size=2)},
        r"optimizer: was torch.optim.sgd.SGD\(momentum=0.9\), is now torch.optim.sgd.SGD; lr_scheduler.*: was 1, is now 2",
    ),
    (
        {"optimizer": sgd(0.9), "lr_scheduler": scheduler(0.1)},
        {"optimizer": sgd(0.5), "lr_scheduler": scheduler(0.2)},
        "optimizer.momentum: was 0.9, is now 0.5; lr_scheduler.gamma: was 0.1, is now 0.2",
    ),
    (
        {"optimizer": lambda parameters, lr: SGD(parameters, lr, momentum=0.9)},
        {"optimizer": lambda parameters, lr: SGD(parameters, lr, momentum=0.5)},
        "optimizer: the code of the function .*<lambda> has changed",
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Trains the runs that tests try to resume: each once, however many do."""
    made = {}

    def name_of(algorithm, arguments, settings):
        key = (algorithm, str(arguments), str(settings))
        if key not in made:
            made[key] = str(tmp_path_factory.mktemp("runs") / "run")
            make(algorithm, **arguments).supervise(name=made[key], **SHORT | {"precision": "32-true"} | settings)
        return made[key]

    return name_of


@pytest.mark.parametrize(("was", "now", "message"), ARGUMENTS, ids=names_of)
@pytest.mark.parametrize("algorithm", FOUR)
def test_resume_refuses_other_arguments_of_the_constructor(algorithm, was, now, message, stored):
    name = stored(algorithm, was, {})
    with pytest.raises(ValueError, match="cannot be resumed with other settings") as error:
        make(algorithm, **now).supervise(name=name, **LONGER, precision="32-true")
    assert all(re.search(part, str(error.value)) for part in message.split("; ")), error.value
    assert read_checkpoint(name)["epoch"] == 1


@pytest.mark.parametrize(("was", "now", "message"), SETTINGS, ids=names_of)
@pytest.mark.parametrize("algorithm", FOUR)
def test_resume_refuses_other_settings(algorithm, was, now, message, stored):
    name = stored(algorithm, {}, was)
    with pytest.raises(ValueError, match=f"cannot be resumed with other settings .*{message}"):
        make(algorithm).supervise(name=name, **LONGER | {"precision": "32-true"} | now)
    assert read_checkpoint(name)["epoch"] == 1
