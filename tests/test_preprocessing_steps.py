"""norm, num_channels, single_channel and sobel with a supervisor: from training to inference, load and resume."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from superself import BYOLSupervisor, LabelSupervisor, RotateNetSupervisor, compare, features
from superself.data import Reading, open_images
from superself.networks import CombinedNet, pooled_features

from cases import CASES, TinyBackbone, tiny_halves
from tensors import seeded

RUN = {"epochs": 1, "batch_size": 8, "name": "run", "progress": False, "precision": "32-true"}
STEPS = {"norm": 10_000, "num_channels": 3}


def raw_images(count=16, channels=4, high=10_000, dtype=torch.uint16):
    return torch.randint(0, high + 1, (count, channels, 16, 16), generator=seeded(count)).to(dtype)


NAME = "resnet9:width=0.125"  # fast
HEADS = {"projector": {"hidden": 16, "out_features": 16}, "predictor": {"hidden": 16}}  # of BYOL


def train(images, backbone=None, **options):
    return RotateNetSupervisor(images, backbone=backbone or TinyBackbone(3), seed=0, **options).supervise(**RUN)


def by_hand(backbone, images):
    return pooled_features(backbone.eval(), backbone.preprocessing(images)).detach()


@pytest.mark.parametrize(
    ("raw", "options"),
    [
        (raw_images(), STEPS),
        (raw_images(dtype=torch.float32), STEPS),
        (raw_images(channels=1), {"norm": 10_000, "single_channel": True}),
        (raw_images(channels=1, dtype=torch.float32), {"norm": 10_000.0, "sobel": True}),
        (raw_images(dtype=torch.uint8, high=255), {"sobel": True, "num_channels": 2}),
    ],
    ids=["16 bits", "floats", "single channel", "sobel of floats", "sobel of two channels"],
)
@pytest.mark.filterwarnings("ignore:the images are floating-point", "ignore:.*needs RGB and is skipped")
def test_raw_images_give_the_features_of_training_wherever_they_are_read(raw, options):
    supervisor = train(raw, NAME, **options)
    backbone = supervisor.get_backbone()
    expected = by_hand(backbone, raw)
    assert expected.std(0).max() > 0 and supervisor.network_shape == (3, 16, 16)
    seen = supervisor.preprocessing(supervisor.images.batch(range(16)).images)
    torch.testing.assert_close(pooled_features(backbone.eval(), seen).detach(), expected)
    torch.testing.assert_close(features(backbone, raw).features, expected)
    torch.testing.assert_close(features(backbone, open_images(raw)).features, expected)
    steps = {key: value for key, value in options.items() if key != "sobel"}
    torch.testing.assert_close(features(backbone, open_images(raw, **steps)).features, expected)
    torch.testing.assert_close(by_hand(RotateNetSupervisor().load("run").get_backbone(), raw), expected)
    again = RotateNetSupervisor(raw).load("run")  # which tells how its images are read
    torch.testing.assert_close(by_hand(again.get_backbone(), raw), expected)
    torch.testing.assert_close(features(again.get_backbone(), again.images).features, expected)
    assert again.preprocessing == supervisor.preprocessing and again.images.reading == supervisor.images.reading


def test_augmentation_sees_images_from_0_to_1_with_the_wanted_channels():
    seen = []

    def augment(images):
        seen.append(images)
        return images

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        supervisor = RotateNetSupervisor(raw_images(), backbone=TinyBackbone(3), augment=augment, **STEPS)
    supervisor.views(supervisor.images.batch(range(8)))
    assert all(part.shape[1] == 3 and part.dtype == torch.float32 for part in seen)
    assert min(part.min() for part in seen) >= 0 and 0.9 < max(part.max() for part in seen) <= 1


def test_sobel_comes_after_augmentation_and_reaches_a_network_of_three_channels():
    supervisor = BYOLSupervisor(raw_images(channels=1), backbone=NAME, norm=10_000, sobel=True, seed=0, **HEADS)
    assert supervisor.network_shape == (3, 16, 16) and supervisor.images.shape == (1, 16, 16)
    raw, views = supervisor.raw_views(batch := supervisor.images.batch(range(8))), supervisor.views(batch)
    assert raw[0].shape == (8, 1, 16, 16) and {tuple(view.shape) for view in views} == {(8, 3, 16, 16)}
    assert not views[0][:, 2].any() and views[0][:, :2].abs().max() > 0
    supervisor.supervise(**RUN)
    loaded = BYOLSupervisor().load("run")
    assert loaded.network_shape == (3, 16, 16) and loaded.preprocessing == supervisor.preprocessing and loaded.sobel
    resumed = BYOLSupervisor(raw_images(channels=1), backbone=NAME, **HEADS)
    resumed.supervise(**{**RUN, "epochs": 2}, resume=True)
    assert resumed.preprocessing == supervisor.preprocessing and resumed.images.reading == Reading(10_000)


def test_a_data_set_is_read_as_in_the_run_that_is_loaded():
    raw = raw_images()
    trained = train(raw, **STEPS)
    other = RotateNetSupervisor(raw, backbone=TinyBackbone(3), **STEPS)
    assert RotateNetSupervisor(raw, backbone=TinyBackbone(4)).images.shape[0] == 4
    named = RotateNetSupervisor(raw[:, :3], backbone=TinyBackbone(3))
    named.load("run")
    assert named.images.reading == Reading(10_000, 3) and named.images.dtype == torch.float32
    assert named.preprocessing == trained.preprocessing == other.load("run").preprocessing


def test_steps_that_were_passed_are_kept_when_a_run_is_loaded():
    trained = train(raw_images(), **STEPS)
    bytes_ = raw_images(channels=3, high=255, dtype=torch.uint8)
    loaded = RotateNetSupervisor(bytes_, backbone=TinyBackbone(3), norm=255).load("run")
    assert loaded.images.dtype == torch.uint8 and loaded.preprocessing.mean == trained.preprocessing.mean
    expected = (bytes_[:1] / 255 - torch.tensor(trained.preprocessing.mean).view(-1, 1, 1)) / torch.tensor(
        trained.preprocessing.std
    ).view(-1, 1, 1)
    torch.testing.assert_close(loaded.get_backbone().preprocessing(bytes_[:1]), expected)


def test_an_open_data_set_without_the_steps_is_refused():
    train(raw_images(), **STEPS)
    opened = RotateNetSupervisor(open_images(raw_images(channels=3)), backbone=TinyBackbone(3))
    with pytest.raises(
        ValueError, match=r"read with norm=10000, num_channels=3, .* pass open_images\(..., norm=10000, num"
    ):
        opened.load("run")
    RotateNetSupervisor(open_images(raw_images(), **STEPS), backbone=TinyBackbone(3)).load("run")


def test_a_run_is_not_loaded_with_another_sobel():
    train(raw_images(), **STEPS)
    with pytest.raises(
        ValueError, match="was trained with sobel=False and this supervisor has sobel=True; pass sobel=Fal"
    ):
        RotateNetSupervisor(raw_images(), backbone=TinyBackbone(3), sobel=True, **STEPS).load("run")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"norm": 5000}, "norm: was 10000, is now 5000"),
        ({"sobel": True}, "sobel: was False, is now True"),
    ],
)
def test_a_resumed_run_compares_the_steps(changed, message):
    train(raw_images(), **STEPS)
    with pytest.raises(ValueError, match=message):
        RotateNetSupervisor(raw_images(), backbone=TinyBackbone(3), **{**STEPS, **changed}).supervise(
            **RUN, resume=True
        )


def test_a_run_of_before_the_steps_existed_is_loaded():
    images = raw_images(channels=3, dtype=torch.uint8, high=255)
    trained = train(images)
    stored = torch.load("run.pt", weights_only=True)
    for entry in ("sobel", "reading", "raw"):
        del stored["preprocessing"][entry]
    del stored["arguments"]["sobel"], stored["identity"]["arguments"]["sobel"]
    for entry in STEPS | {"single_channel": None}:
        del stored["identity"]["data"][entry]
    torch.save(stored, "run.pt")
    loaded = RotateNetSupervisor(images, backbone=TinyBackbone(3)).load("run")
    assert loaded.preprocessing == trained.preprocessing
    RotateNetSupervisor(images, backbone=TinyBackbone(3)).supervise(**{**RUN, "epochs": 2}, resume=True)


def test_probe_compare_and_fine_tuning_read_like_training():
    raw, labels = raw_images(24, dtype=torch.float32), torch.arange(24) % 2
    supervisor = RotateNetSupervisor(raw, backbone=TinyBackbone(3), seed=0, **STEPS)
    supervisor.supervise(**RUN, probe=((raw, labels), (raw, labels)))
    backbone = supervisor.get_backbone()
    rows = compare(backbone, (raw, labels), (raw, labels), k=3, print=False).rows
    opened = [(open_images((raw, labels), **STEPS)) for _ in range(2)]
    assert compare(backbone, *opened, k=3, print=False).rows == rows
    assert compare(backbone, open_images((raw, labels)), (raw, labels), k=3, print=False).rows == rows
    width = backbone(backbone.preprocessing(raw[:2])).shape[1]
    made = LabelSupervisor(CombinedNet(backbone, nn.Linear(width, 2)), (raw, labels), seed=0)
    assert made.images.reading == Reading(10_000, 3) and made.images.batch([0]).images.max() <= 1
    torch.testing.assert_close(made.views(made.images.batch(range(4)))[0], backbone.preprocessing(raw[:4]))
    made.supervise(**{**RUN, "name": "probe"})
    outputs = made.model.eval()(backbone.preprocessing(raw))
    made.model.predictor.bias.data -= outputs.detach().median(0).values  # both classes are predicted
    predicted = made.model(backbone.preprocessing(raw)).argmax(1)
    assert 0 < predicted.sum() < 24
    for data in ((raw, predicted), open_images((raw, predicted), **STEPS), open_images((raw[:, :3], predicted))):
        assert made.accuracy(data) == 1
    of_raw = LabelSupervisor(CombinedNet(backbone, nn.Linear(width, 2)), open_images((raw, labels)), seed=0)
    torch.testing.assert_close(of_raw.preprocessing(raw[:4]), backbone.preprocessing(raw[:4]))


def test_files_are_read_by_workers_too(tmp_path):
    for number, image in enumerate(raw_images(8)):
        np.save(tmp_path / f"{number}.npy", image.permute(1, 2, 0).numpy())
    supervisor = RotateNetSupervisor(tmp_path, backbone=TinyBackbone(3), seed=0, memory_limit=0, **STEPS)
    supervisor.supervise(**RUN, num_workers=1)
    raw = raw_images(8)
    torch.testing.assert_close(
        features(supervisor.get_backbone(), tmp_path).features, by_hand(supervisor.get_backbone(), raw)
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.algorithm.__name__)
def test_every_algorithm_takes_the_steps(case):
    halves = case.backbone is tiny_halves  # which need colours
    raw = raw_images(16)
    supervisor = case.make(raw, sobel=not halves, **STEPS)
    loss = supervisor._forward(supervisor.images.batch(range(8)))
    assert loss.isfinite() and supervisor.network_shape == (3, 16, 16)
    torch.testing.assert_close(
        by_hand(supervisor.get_backbone(), raw), features(supervisor.get_backbone(), raw).features
    )
    if halves:
        with pytest.raises(ValueError, match="sobel=True leaves no colours"):
            case.make(raw, sobel=True, **STEPS)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sobel": "yes"}, TypeError, "sobel='yes' is neither True nor False"),
        ({"norm": 0}, ValueError, "norm=0 cannot divide images"),
        ({"num_channels": 5}, ValueError, "num_channels=5 is more than the 4 channels"),
    ],
)
def test_wrong_steps_are_refused_when_a_supervisor_is_made(options, error, message):
    with pytest.raises(error, match=message):
        RotateNetSupervisor(raw_images(), backbone=TinyBackbone(4), **options)
