"""The invariance report: how far features move, relative to the distance between images."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from superself.augment import RandomHorizontalFlip
from superself.data import Preprocessing, Reading, open_images, photos, to_float
from superself.evaluation import SERIES, Invariance, Series, invariance_report
from superself.evaluation.collapse import mean_cosine
from superself.evaluation.subject import Subject

from cases import TinyBackbone, tiny_images


class Grey(nn.Module):
    """All pixels of the luma: colour is invisible, everything else is not."""

    def forward(self, images):
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        return (images * weights).sum(1).flatten(1)


class Mean(nn.Module):
    """The mean of each channel: where things are is invisible."""

    def forward(self, images):
        return images.mean((2, 3))


class Plain(nn.Module):
    """Pixels themselves."""

    def forward(self, images):
        return images.flatten(1)


def same(images):
    """The subject of a backbone that sees the stored pixels in [0, 1]."""
    return Preprocessing(tuple(images.shape[1:]), "uint8", (0.0,) * images.shape[1], (1.0,) * images.shape[1])


def report(backbone, images, **options):
    return invariance_report(Subject(backbone, same(images)), images, **options)


def test_features_move_only_under_what_they_can_see():
    images = tiny_images(12, size=(32, 32))
    grey, mean = report(Grey(), images).moved, report(Mean(), images).moved
    assert grey["grey"][1.0] == pytest.approx(0, abs=1e-5) and grey["saturation"][0.0] == pytest.approx(0, abs=1e-5)
    assert grey["upside down"][1.0] > 0.5 and grey["rotation"][90] > 0.3
    assert mean["flip"][1.0] == pytest.approx(0, abs=1e-5) and mean["upside down"][1.0] == pytest.approx(0, abs=1e-5)
    assert mean["grey"][1.0] > 0.3


def test_movement_is_relative_to_the_distance_between_images():
    images = tiny_images(8)
    found = report(Plain(), images, series={"flip": SERIES["flip"]})
    pixels, flipped = ((part / 255).flatten(1).double() for part in (images, images.flip(3)))
    cosine = torch.cosine_similarity(pixels, flipped).mean()
    other = mean_cosine(pixels.float())
    assert found.moved == {"flip": {1.0: pytest.approx(((1 - cosine) / (1 - other)).item(), rel=1e-4)}}
    assert found.other_cosine == pytest.approx(other) and found.count == 8


@pytest.fixture(scope="module")
def photographs():
    return to_float(photos("test", 32).sample(24))


@pytest.mark.parametrize("name", [name for name, part in SERIES.items() if len(part.strengths) > 1])
def test_stronger_transforms_change_photographs_more(name, photographs):
    part = SERIES[name]
    changed = [part.make(s, 32)(photographs, torch.Generator().manual_seed(0)) for s in part.strengths]
    distances = [(after - photographs).abs().mean().item() for after in changed]
    assert distances == sorted(distances) and distances[0] > 1e-3 and distances[-1] > 1.3 * distances[0]


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_colours_are_left_out_where_there_are_none(channels, recwarn):
    found = report(TinyBackbone(channels), tiny_images(6, channels), count=4)
    colours = {"saturation", "hue", "grey"}
    assert set(found.moved) == set(SERIES) - colours and found.count == 4
    assert found.notes == (f"Left out for images of {channels} channel(s), as they need RGB: saturation, hue, grey.",)
    assert not [w for w in recwarn if "RGB" in str(w.message)]
    assert found.notes[0] in str(found)


def test_text_has_a_line_for_each_transform_with_its_strengths():
    text = str(report(Plain(), tiny_images(6, size=(32, 32))))
    for name, part in SERIES.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name:<12}")]
        assert line.count("%") == len(part.strengths) and all(f"{s:.3g}:" in line for s in part.strengths)


def test_the_picture_is_written(tmp_path):
    evaluator = Invariance(tiny_images(6), count=4)
    path = evaluator.figure(Subject(TinyBackbone()), tmp_path / "a" / "invariance.png")
    assert path.exists() and min(Image.open(path).size) > 200


def test_custom_transforms_are_measured():
    series = {"mine": Series(lambda s, side: RandomHorizontalFlip(float(s > side)), (1, 100), "pixels")}
    moved = report(Plain(), tiny_images(6), series=series).moved["mine"]
    assert moved[1] == pytest.approx(0, abs=1e-9) and moved[100] > 1e-3


def test_collapsed_features_are_named():
    class Constant(nn.Module):
        def forward(self, images):
            return 0 * images.mean((2, 3)) + 1

    with pytest.raises(ValueError, match="features of all images are the same"):
        report(Constant(), tiny_images(4))


def test_pixels_that_transforms_cannot_take_are_refused():
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match=r"transforms need \[0, 1\]; open the images with norm="),
    ):
        invariance_report(Plain(), tiny_images(4).float())


def test_reading_steps_are_taken_before_the_transforms():
    images = tiny_images(6)
    known = replace(same(images), mean=(0.2,) * 3, std=(0.1,) * 3, dtype="float32", reading=Reading(norm=510.0))
    series = {"noise": SERIES["noise"]}
    halves = images / 510  # as they are read
    expected = invariance_report(Subject(Plain(), replace(known, reading=None)), halves, series=series).moved["noise"]
    for dataset in (images, open_images(images), open_images(images, norm=510.0)):
        found = invariance_report(Subject(Plain(), known), dataset, series=series)
        assert found.moved["noise"] == pytest.approx(expected, rel=1e-4)


def test_the_evaluator_gives_one_minus_the_mean_movement_and_repeats_itself():
    subject, evaluator = Subject(TinyBackbone().train()), Invariance(tiny_images(8), count=6)
    state = torch.get_rng_state()
    values = evaluator.evaluate(subject)
    assert values == evaluator.evaluate(subject) and torch.equal(torch.get_rng_state(), state)
    assert all(part.training for part in subject.backbone.modules())
    moved = evaluator.report.moved
    assert values["invariance_blur"] == pytest.approx(1 - sum(moved["blur"].values()) / 4)
    assert values["invariance_upside_down"] == pytest.approx(1 - moved["upside down"][1.0])
    parts = [value for name, value in values.items() if name != "invariance"]
    assert next(iter(values)) == "invariance" and values["invariance"] == pytest.approx(sum(parts) / len(parts))
