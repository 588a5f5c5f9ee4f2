from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from superself import (
    BiGanSupervisor,
    ContrastivePredictiveCodingSupervisor,
    DenoiseNetSupervisor,
    InstanceDiscriminationSupervisor,
    JigsawNetSupervisor,
    MomentumContrastSupervisor,
    RotateNetSupervisor,
    SplitBrainNetSupervisor,
    Tracker,
)
from superself.training import read_checkpoint
from superself.training.settings import Settings

from cases import TinyBackbone, tiny_images

SHORT = {"epochs": 1, "batch_size": 8, "progress": False}


def rotatenet(**arguments):
    return RotateNetSupervisor(tiny_images(), **{"backbone": TinyBackbone(), "seed": 0, **arguments})


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("p.pt", "p"),
        ("s/", "s"),
        (Path("deep/run"), "deep/run"),
        (Path("deep/run.pt"), "deep/run"),
        ("v1.2", "v1.2"),
        ("~/x", "home/x"),
    ],
    ids=str,
)
def test_every_way_to_write_a_name_means_one_run(name, path, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    trained = rotatenet().supervise(name=name, **SHORT)
    for ending in (".pt", ".yaml", ".csv"):
        assert Path(f"{path}{ending}").is_file()
    loaded = rotatenet().load(name)
    assert torch.equal(loaded.model.backbone.layers[0].weight, trained.model.backbone.layers[0].weight)
    assert rotatenet().supervise(name="other", pretrained=name, **SHORT).step == 2
    assert rotatenet().supervise(name=name, resume=True, **SHORT | {"epochs": 2}).step == 4


@pytest.mark.parametrize("name", ["..", ".", "", "a/..", 3, None])
def test_a_name_without_a_file_name_is_refused(name):
    with pytest.raises(TypeError, match="must be a path without an extension"):
        Settings(name=name)


# ---- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resume": 1}, 'resume=1 must be True, False or "auto"'),
        ({"resume": 0}, 'resume=0 must be True, False or "auto"'),
        ({"pretrained": ""}, "pretrained='' must be True, False, or the name of a run"),
        ({"pretrained": 1}, "pretrained=1 must be True, False, or the name of a run"),
        ({"trackers": Tracker()}, r"trackers is a Tracker; pass a list, trackers=\[MyTracker\(\)\]"),
        ({"trackers": [Tracker]}, "which is not a Tracker; pass instances"),
        ({"shuffle": 1}, "shuffle=1 must be True or False"),
    ],
)
def test_a_setting_of_another_type_is_refused_with_what_is_needed(settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Settings(**settings)


def test_settings_of_numpy_become_plain():
    settings = Settings(
        lr=np.float64(0.1), epochs=np.int64(2), batch_size=np.int32(4), shuffle=np.True_, resume=np.True_
    )
    assert settings == Settings(lr=0.1, epochs=2, batch_size=4, shuffle=True, resume=True)
    assert [type(v) for v in (settings.lr, settings.epochs, settings.shuffle)] == [float, int, bool]


@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [
        (InstanceDiscriminationSupervisor, {"temperature": np.float32(0.25), "negatives": np.int64(8)}),
        (BiGanSupervisor, {"discriminator_lr": np.int64(2), "latent": np.int16(4)}),
        (RotateNetSupervisor, {"seed": np.int64(3), "view_size": (np.int64(12), np.int64(12))}),
    ],
)
def test_hyper_parameters_of_numpy_are_stored_as_plain_numbers(algorithm, arguments):
    supervisor = algorithm(tiny_images(), backbone=TinyBackbone(), **arguments).supervise(name="run", **SHORT)
    stored = read_checkpoint("run")
    for name, value in arguments.items():
        plain = stored["seed"] if name == "seed" else stored["arguments"][name]
        assert np.array_equal(plain, value) and not isinstance(plain, np.generic)
        assert not any(isinstance(part, np.generic) for part in np.atleast_1d(plain).tolist())
    assert algorithm(backbone=TinyBackbone()).load("run").device == supervisor.device


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(({"view_size": size}, "view_size=.* is not a size; pass one number of") for size in ((1,), -3, 3.5, "a", True)),
        *(({"image_size": size}, "image_size=.* is not a size; pass one number of") for size in (True, 0, "a")),
        *(({"normalize": value}, r"normalize=.* must be \(mean, std\)") for value in (1, "x", "xy", ("a", "b"), (None, 1))),
        ({"normalize": (0.5, 0)}, "normalize=.* needs finite values and stds larger than 0"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"seed": 3.5}, "seed must be an integer of at least 0, got 3.5 of type float"),
        ({"seed": True}, "seed must be an integer of at least 0, got True of type bool"),
        ({"loss": 3}, "loss=3 cannot be called; pass a function or a module"),
        ({"collate_fn": 3}, "collate_fn=3 cannot be called; pass a function or a module"),
        ({"read": 3}, "read=3 cannot be called; pass a function or a module"),
        ({"rotations": 3}, "rotations=3 must be several angles in degrees"),
        ({"rotations": "ab"}, "rotations='ab' must be several angles in degrees"),
        ({"rotations": ("a", "b")}, "each of rotations must be a finite number, got 'a' of type str"),
        ({"rotations": (0,)}, r"rotations=\(0,\) must be two or more different angles"),
    ],
    ids=str,
)  # fmt: skip
def test_an_argument_that_cannot_be_used_is_refused_with_what_is_needed(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        rotatenet(**arguments)


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [
        (MomentumContrastSupervisor, "symmetric"),
        (ContrastivePredictiveCodingSupervisor, "layer_norm"),
        (JigsawNetSupervisor, "whole"),
        (SplitBrainNetSupervisor, "rebalance"),
        (DenoiseNetSupervisor, "corrupted_only"),
    ],
)
@pytest.mark.parametrize("value", [1, "yes", None, nn.Identity()], ids=str)
def test_what_is_not_true_or_false_is_refused_for_a_switch(algorithm, name, value):
    with pytest.raises(TypeError, match=f"{name} must be True or False, got"):
        algorithm(**{name: value})
    assert getattr(algorithm(**{name: np.True_}), name) is True
