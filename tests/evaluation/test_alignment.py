"""Alignment, uniformity and cosines of positive and negative pairs."""

import math

import pytest
import torch
from PIL import Image
from torch import nn

from superself import losses
from superself.evaluation import (
    Alignment,
    feature_uniformity,
    mean_cosine,
    other_cosine,
    view_alignment,
    view_cosine,
    view_features,
)
from superself.evaluation.subject import Subject

from cases import TinyBackbone, tiny_images
from tensors import noise


def unit(features):
    return [[value / math.hypot(*row) for value in row] for row in features.tolist()]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.fixture(params=[4096, 3], ids=["one part", "parts of 3"])
def _parts(request, monkeypatch):
    monkeypatch.setattr("superself.evaluation.alignment.ROWS", request.param)


@pytest.mark.usefixtures("_parts")
def test_measures_equal_double_loops():
    first, second = noise(8, 5), noise(8, 5, seed=1)
    pairs = list(zip(unit(first), unit(second), strict=True))
    distances = [math.dist(a, b) for a, b in pairs]
    assert view_alignment(first, second) == pytest.approx(sum(d**2 for d in distances) / 8)
    assert view_alignment(first, second, alpha=1.5) == pytest.approx(sum(d**1.5 for d in distances) / 8)
    assert view_cosine(first, second) == pytest.approx(sum(dot(a, b) for a, b in pairs) / 8)
    others = [dot(pairs[i][0], pairs[j][1]) for i in range(8) for j in range(8) if i != j]
    assert other_cosine(first, second) == pytest.approx(sum(others) / 56)
    rows = unit(first)
    potentials = [math.exp(-3 * math.dist(rows[i], rows[j]) ** 2) for i in range(8) for j in range(i)]
    assert feature_uniformity(first, t=3.0) == pytest.approx(math.log(sum(potentials) / 28))


def test_measures_equal_the_losses_of_the_same_name():
    first, second = noise(30, 6), noise(30, 6, seed=1)
    assert view_alignment(first, second) == pytest.approx(losses.alignment(first, second).item(), rel=1e-5)
    assert feature_uniformity(first) == pytest.approx(losses.uniformity(first).item(), rel=1e-5)


def test_numbers_worked_by_hand():
    # Directions (1, 0), (0, 1), (-1, 0): squared distances 2, 2 and 4. Views turned by 90 degrees: cosine 0, distance^2 2.
    first = torch.tensor([[2.0, 0], [0, 1], [-3, 0]])
    second = torch.tensor([[0.0, 1], [-1, 0], [0, -1]])
    assert feature_uniformity(first) == pytest.approx(math.log((2 * math.exp(-4) + math.exp(-8)) / 3))
    assert view_alignment(first, second) == pytest.approx(2) and view_cosine(first, second) == pytest.approx(0)
    # Rows against columns: (0, -1, 0), (1, 0, -1), (0, 1, 0); off the diagonal -1 + 0 + 1 - 1 + 0 + 1 = 0.
    assert other_cosine(first, second) == pytest.approx(0)
    assert other_cosine(first, first) == pytest.approx(-1 / 3)  # cosines 0, -1 and 0, each twice


def test_collapsed_features_are_aligned_and_not_uniform():
    features = torch.tensor([[3.0, 4.0]]).repeat(5, 1) * torch.arange(1, 6)[:, None]
    assert view_alignment(features, features.flip(0)) == pytest.approx(0, abs=1e-12)
    assert feature_uniformity(features) == pytest.approx(0, abs=1e-9)
    assert view_cosine(features, features) == pytest.approx(1) and other_cosine(features, features) == pytest.approx(1)


def test_random_directions_in_many_dimensions_are_uniform():
    features = noise(3000, 256)
    assert feature_uniformity(features) == pytest.approx(-4, abs=0.05)
    assert other_cosine(features, features) == pytest.approx(0, abs=1e-3)


def test_a_fixed_part_of_many_images_is_compared():
    features = noise(3000, 8)
    part = feature_uniformity(features, most=1000)
    assert part == feature_uniformity(features, most=1000) != feature_uniformity(features, most=1000, seed=1)
    assert part == pytest.approx(feature_uniformity(features), abs=0.03)


def test_negatives_of_one_view_are_the_mean_cosine():
    assert other_cosine(noise(9, 4), noise(9, 4)) == pytest.approx(mean_cosine(noise(9, 4)))


def test_features_that_are_not_finite_give_nan():
    bad = noise(5, 3)
    bad[2, 1] = math.nan
    values = view_alignment(bad, noise(5, 3)), view_cosine(bad, bad), other_cosine(bad, bad), feature_uniformity(bad)
    assert all(map(math.isnan, values)) and math.isnan(other_cosine(noise(1, 3), noise(1, 3)))


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"two views of the same images .* got \(4, 3\) and \(5, 3\)"):
        view_alignment(noise(4, 3), noise(5, 3))
    with pytest.raises(ValueError, match="uniformity compares pairs of images, and got 1"):
        feature_uniformity(noise(1, 3))
    with pytest.raises(ValueError, match="alpha must be a number above 0"):
        view_alignment(noise(4, 3), noise(4, 3), alpha=0)


class Mean(nn.Module):
    """The mean of each channel: a backbone that a flip does not change."""

    def forward(self, images):
        return images.mean((2, 3))


def test_view_features_are_those_of_the_views():
    images = tiny_images(5)

    def views(batch):
        return [batch, batch.flip(3), batch[:, :, :8], 255 - batch]

    backbone = Mean()
    subject = Subject(backbone, views=views)
    found = view_features(subject, images, views=4)
    normalised = subject.preprocessing(images).mean((2, 3))
    negative = subject.preprocessing(255 - images).mean((2, 3))
    assert found.shape == (5, 4, 3)  # the third has another size than the first
    for place, expected in enumerate((normalised, normalised, negative, normalised)):
        torch.testing.assert_close(found[:, place], expected)


def test_the_evaluator_gives_the_measures_of_two_views_and_repeats_them():
    subject = Subject(TinyBackbone(), views=lambda batch: [batch, batch.flip(3)])
    evaluator = Alignment(tiny_images(12))
    values = evaluator.evaluate(subject)
    first, second = view_features(subject, evaluator.images).unbind(1)
    assert values == {
        "alignment": view_alignment(first, second),
        "uniformity": (feature_uniformity(first) + feature_uniformity(second)) / 2,
        "positives_cosine": view_cosine(first, second),
        "negatives_cosine": other_cosine(first, second),
    }
    random = Alignment(tiny_images(12), augment="crop-flip")
    state = torch.get_rng_state()
    assert random.evaluate(subject) == random.evaluate(subject) != values
    assert torch.equal(torch.get_rng_state(), state)


def test_a_recipe_makes_the_views_where_the_subject_has_none():
    images = tiny_images(6)
    plain = Alignment(images).evaluate(Subject(TinyBackbone()))
    assert plain == Alignment(images, augment="simclr").evaluate(Subject(TinyBackbone())) and plain["alignment"] > 1e-4


def test_an_evaluator_without_images_says_what_to_pass():
    with pytest.raises(ValueError, match=r'Alignment has no images.*pass Alignment\("my_images"\)'):
        Alignment().open(Subject(TinyBackbone()))


def test_modes_are_restored_and_batches_do_not_matter(monkeypatch):
    backbone, images = TinyBackbone().train(), tiny_images(9)
    whole = Alignment(images, augment="plain").evaluate(Subject(backbone))
    assert all(module.training for module in backbone.modules()) and backbone.layers[1].num_batches_tracked == 0
    monkeypatch.setattr("superself.evaluation.unlabelled.BATCH", 4)
    assert Alignment(images, augment="plain").evaluate(Subject(backbone)) == pytest.approx(whole, abs=1e-6)


def test_images_that_cannot_be_read_are_left_out(tmp_path):
    for place, image in enumerate(tiny_images(24)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{place:02}.png")
    readable = view_features(TinyBackbone(), str(tmp_path), augment="plain")
    (tmp_path / "05.png").write_bytes((tmp_path / "05.png").read_bytes()[:60])
    found = view_features(TinyBackbone(), str(tmp_path), augment="plain")
    assert len(readable) == 24 and len(found) == 23
