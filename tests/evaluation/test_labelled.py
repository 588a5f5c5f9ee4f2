"""The evaluators with labels: what they open, what they report, and what they refuse."""

import pytest
import torch
from torch import nn

from superself.evaluation import (
    KNN,
    LabelFractions,
    LinearProbe,
    LinearSVM,
    NearestCentroid,
    RidgeProbe,
    extraction,
    features,
    label_fractions,
    linear_accuracy,
)
from superself.evaluation.labelled import LabelledEvaluator
from superself.evaluation.subject import Subject

EVALUATORS = {"knn": KNN, "linear": LinearProbe, "svm": LinearSVM, "centroid": NearestCentroid, "ridge": RidgeProbe}


def images(count, classes=3, seed=0):
    """Images whose class is the row that is bright."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    pixels = torch.randint(0, 40, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    pixels[torch.arange(count), 0, labels] += 120
    return pixels, labels


def subject():
    torch.manual_seed(0)
    return Subject(nn.Sequential(nn.Flatten(), nn.Linear(64, 16)))


@pytest.mark.parametrize("name", EVALUATORS)
def test_value_is_named_after_the_evaluator_and_is_the_accuracy(name):
    measured, evaluator = subject(), EVALUATORS[name](images(60), images(30, seed=1))
    evaluator.open(measured)
    values = evaluator.evaluate(measured)
    assert values == {name: evaluator.result.top1} and values[name] > 0.9 and evaluator.name == name
    assert evaluator.evaluate(measured) == values
    assert evaluator.protocol == evaluator.result.protocol and "60 training and 30 test images" in evaluator.protocol


@pytest.mark.parametrize("name", EVALUATORS)
def test_top5_is_reported_when_asked_for(name):
    measured, evaluator = subject(), EVALUATORS[name](images(64, 8), images(32, 8, seed=1), top5=True)
    evaluator.open(measured)
    values = evaluator.evaluate(measured)
    assert list(values) == [name, f"{name}_top5"] and values[f"{name}_top5"] == evaluator.result.top5


def test_top5_of_few_classes_is_refused_before_the_run():
    with pytest.raises(ValueError, match="top5=True needs at least 6 classes, and the training images have 3"):
        KNN(images(60), images(30), top5=True).open(subject())


def test_values_are_those_of_the_functions():
    measured = subject()
    train, test = images(60), images(30, seed=1)
    probe = LinearProbe(train, test, seed=2)
    probe.open(measured)
    found = [features(measured.backbone, part, preprocessing=measured.preprocessing) for part in (train, test)]
    assert probe.evaluate(measured) == {"linear": linear_accuracy(*found, seed=2)}
    fractions = LabelFractions(train, test, (0.1, 1.0), (2,), repeats=2, how="centroid", seed=1)
    fractions.open(measured)
    table = label_fractions(*found, (0.1, 1.0), (2,), repeats=2, how="centroid", seed=1)
    values = fractions.evaluate(measured)
    assert list(values) == ["centroid_at_0.1", "centroid_at_1", "centroid_shots_2"]
    assert list(values.values()) == [row.mean for row in table.rows]


def test_several_evaluators_need_one_pass_through_the_network(monkeypatch):
    measured = subject()
    train, test = measured.open(images(60)), measured.open(images(30, seed=1))
    passes = []
    measured.backbone.register_forward_hook(lambda *_: passes.append(1))
    for evaluator in (KNN(train, test), RidgeProbe(train, test)):
        evaluator.open(measured)
        evaluator.evaluate(measured)
    assert len(passes) == 2


def test_measuring_changes_nothing():
    measured = subject()
    measured.backbone.train()
    before = [value.clone() for value in measured.backbone.state_dict().values()]
    state = torch.get_rng_state()
    for kind in EVALUATORS.values():
        evaluator = kind(images(60), images(30))
        evaluator.open(measured)
        evaluator.evaluate(measured)
    assert measured.backbone.training and torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, before, measured.backbone.state_dict().values()))


def test_images_without_labels_are_refused_before_the_run():
    with pytest.raises(ValueError, match="test has no labels, which are needed to measure accuracy"):
        KNN(images(60), images(30)[0]).open(subject())
    with pytest.raises(ValueError, match=r"train has targets \(2,\) of torch.float32, and an accuracy needs one class"):
        KNN((images(60)[0], torch.rand(60, 2)), images(30)).open(subject())


def test_unknown_classes_are_refused_before_the_run(tmp_path):
    from PIL import Image

    for folder in ("train/cat", "train/dog", "test/cat", "test/owl"):
        (tmp_path / folder).mkdir(parents=True)
        for place in range(3):
            Image.new("L", (8, 8)).save(tmp_path / folder / f"{place}.png")
    with pytest.raises(ValueError, match=r"test has the classes \['owl'\], which train does not have"):
        KNN(f"imagefolder:{tmp_path}/train", f"imagefolder:{tmp_path}/test", k=2).open(subject())


def test_more_neighbours_than_images_are_refused_before_the_run():
    with pytest.raises(ValueError, match="k=20 neighbours of 12 training images; pass k <= 12"):
        KNN(images(12), images(30)).open(subject())


def test_evaluating_before_opening_is_explained():
    with pytest.raises(RuntimeError, match=r"KNN has not opened its images; call open\(subject\)"):
        KNN(images(60), images(30)).evaluate(subject())


def test_a_classifier_of_your_own_needs_one_method():
    with pytest.raises(NotImplementedError, match="defines no classify"):
        LabelledEvaluator(images(6), images(6)).classify(None, None, None)


@pytest.mark.parametrize("option", [{"k": 0}, {"temperature": 0}, {"pool": "max"}, {"top5": 5}, {"every": 0}])
def test_wrong_options_are_refused_when_made(option):
    with pytest.raises((ValueError, TypeError), match=next(iter(option))):
        KNN(images(60), images(30), **option)


class Maps(nn.Module):
    """(B, 2, 8, 4): the means of neighbouring pixels, and their negatives."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AvgPool2d((1, 2))

    def forward(self, x):
        return torch.cat([self.pool(x), -self.pool(x)], dim=1)


def test_flattened_features_keep_what_averaging_loses():
    train, test, measured = images(60), images(30, seed=1), Subject(Maps())
    flat = features(measured.backbone, train, pool="flatten")
    assert flat.features.shape == (60, 2 * 8 * 4)
    averaged = features(measured.backbone, train).features
    assert torch.allclose(flat.features.view(60, 2, 32).mean(2), averaged, atol=1e-6)
    values = {}
    for pool in ("mean", "flatten"):
        probe = RidgeProbe(train, test, pool=pool)
        probe.open(measured)
        values[pool] = probe.evaluate(measured)["ridge"]
    assert values["flatten"] > 0.9 and values["mean"] < 0.6  # which row is bright


def test_flattened_features_that_take_too_much_memory_are_refused(monkeypatch):
    monkeypatch.setattr(extraction, "FLATTENED_LIMIT", 60 * 64 * 4 - 1)
    with pytest.raises(ValueError, match=r'64 features per image \(2 x 8 x 4\).*pool="mean"'):
        features(Maps(), images(60), pool="flatten")
    assert features(Maps(), images(59), pool="flatten").features.shape == (59, 64)
    with pytest.raises(ValueError, match="pool='max' is unknown"):
        features(Maps(), images(60), pool="max")
