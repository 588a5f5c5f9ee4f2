"""Presets: names for arguments from a paper."""

import pytest
import torch
from torch import nn

from superself import MomentumContrastSupervisor, create, list_presets
from superself.algorithms import ALGORITHMS
from superself.training.hyper_parameters import declared

from cases import CASES, TinyBackbone, tiny_images

SIZES = {"context-encoder-center": 32, "cpc-v2": 188}  # pixels, where 16 are too few
SHARED = {"seed": 0, "queue_size": 12}


def same(first, second):
    """Whether two supervisors have the same hyper-parameters and the same initial weights."""
    plain = [{**declared(s), "backbone": None} for s in (first, second)]
    states = first.state_dict(), second.state_dict()
    equal_weights = all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    return plain[0] == plain[1] and equal_weights


def test_moco_v1_equals_the_constructor_with_its_arguments():
    preset = create("moco-v1", tiny_images(), backbone=TinyBackbone(), **SHARED)
    written_out = MomentumContrastSupervisor(
        tiny_images(), augment="moco-v1", projector="linear", temperature=0.07, backbone=TinyBackbone(), **SHARED
    )
    assert type(preset) is MomentumContrastSupervisor and same(preset, written_out)


def test_moco_v2_equals_the_constructor_without_arguments():
    preset = create("moco-v2", tiny_images(), backbone=TinyBackbone(), **SHARED)
    assert same(preset, MomentumContrastSupervisor(tiny_images(), backbone=TinyBackbone(), **SHARED))


def test_arguments_take_precedence_over_those_of_a_preset():
    supervisor = create("moco-v1", tiny_images(), backbone=TinyBackbone(), temperature=0.5, **SHARED)
    assert supervisor.temperature == supervisor.loss.temperature == 0.5
    assert supervisor.augment == "moco-v1"


def test_the_run_of_a_preset_is_loaded_by_its_class_without_a_data_set():
    create("moco-v1", tiny_images(), backbone=TinyBackbone(), **SHARED).supervise(
        epochs=1, batch_size=8, name="run", progress=False
    )
    loaded = MomentumContrastSupervisor(backbone=TinyBackbone()).load("run")
    assert (loaded.temperature, loaded.given.projector, loaded.augment) == (0.07, "linear", "moco-v1")
    assert len(loaded.model.predictor) == 1


@pytest.mark.parametrize("preset", list_presets())
def test_every_preset_makes_a_supervisor_with_its_arguments(preset, monkeypatch):
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: None)  # heads of papers have 100 million weights
    cls = ALGORITHMS[list_presets()[preset]]
    case = next(case for case in CASES if case.algorithm is cls)
    arguments = {name: value for name, value in case.arguments.items() if name not in cls.presets[preset]}
    images = tiny_images(4, size=(SIZES.get(preset, 16),) * 2)
    supervisor = create(preset, images, backbone=case.backbone(), **arguments)
    found = declared(supervisor)
    assert type(supervisor) is cls
    assert {name: found[name] for name in cls.presets[preset]} == cls.presets[preset]
