import math

import pytest
import torch

from superself.evaluation import Features, knn_classification, label_fractions, linear_accuracy, linear_classification
from superself.evaluation.fractions import CLASSIFIERS, FractionRow, draw_labels

LABELS = torch.tensor([0] * 50 + [1] * 20 + [2] * 3)


def blobs(images, classes=4, width=12, spread=1.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    return Features(
        torch.randn(images, width, generator=generator) * spread + 2 * torch.eye(classes, width)[labels], labels
    )


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.1, [5, 2, 1]), (0.01, [1, 1, 1]), (0.5, [25, 10, 2]), (1, [50, 20, 3])]
)
def test_each_class_gives_its_fraction_and_at_least_one_image(fraction, expected):
    places = draw_labels(LABELS, fraction, None, seed=0, repeat=0)
    assert LABELS[places].bincount().tolist() == expected
    assert places.tolist() == sorted(set(places.tolist()))


def test_shots_are_images_of_each_class_and_a_small_class_gives_all():
    assert LABELS[draw_labels(LABELS, None, 5, seed=0, repeat=0)].bincount().tolist() == [5, 5, 3]


def test_draws_contain_the_smaller_ones_of_the_same_repetition_and_differ_between_repetitions():
    draws = [set(draw_labels(LABELS, fraction, None, 0, 1).tolist()) for fraction in (0.1, 0.3, 1)]
    assert draws[0] < draws[1] < draws[2]
    assert draws[0] != set(draw_labels(LABELS, 0.1, None, 0, 2).tolist())
    assert draws[0] != set(draw_labels(LABELS, 0.1, None, 1, 1).tolist())


def test_every_backbone_and_classifier_gets_the_same_images():
    drawn = []

    def how(train, test):
        drawn[-1].append(train.paths)
        return knn_classification(train, test, k=1)

    first, second = blobs(40), blobs(40, width=7, seed=3)
    for part in (first, second):
        drawn.append([])
        named = Features(part.features, part.labels, [str(place) for place in range(40)])
        label_fractions(named, part, (0.1, 0.5), (2,), repeats=3, how=how)
    assert drawn[0] == drawn[1] and len(drawn[0]) == 9


def test_rows_are_means_and_deviations_of_separate_measurements():
    train, test = blobs(80), blobs(200, seed=1)
    table = label_fractions(train, test, (0.1, 1.0), (5,), repeats=3, seed=4)
    expected = []
    for repeat in range(3):
        drawn = train.rows(draw_labels(train.labels, 0.1, None, 4, repeat))
        expected.append(linear_classification(drawn, test, seed=4 + repeat, population=train).top1)
    row = table["10%"]
    assert row.accuracies == tuple(expected) and row.images == 8 and len(set(expected)) > 1
    assert row.mean == pytest.approx(sum(expected) / 3)
    assert row.std == pytest.approx(torch.tensor(expected, dtype=torch.float64).std().item())
    assert table["100%"].accuracies == (linear_accuracy(train, test, seed=4),) and math.isnan(table["100%"].std)
    assert table["5-shot"].images == 20 and [row.key for row in table.rows] == ["at_0.1", "at_1", "shots_5"]


def test_interval_is_that_of_students_t():
    # std = 0.1, t(0.975, 2) = 4.3027: 0.6 +- 4.3027 * 0.1 / sqrt(3)
    low, high = FractionRow("1%", "at_0.01", 3, (0.5, 0.6, 0.7)).confidence_interval()
    assert low == pytest.approx(0.6 - 0.24841, abs=1e-4) and high == pytest.approx(0.6 + 0.24841, abs=1e-4)
    assert all(math.isnan(bound) for bound in FractionRow("1%", "at_0.01", 3, (0.5,)).confidence_interval())


def test_table_shows_every_row_and_the_protocol():
    text = str(label_fractions(blobs(80), blobs(40, seed=1), (0.1, 1.0), repeats=2, how="centroid")).splitlines()
    assert text[0].split() == ["labels", "images", "draws", "accuracy", "std", "95", "%", "interval"]
    assert text[1].split()[:3] == ["10%", "8", "2"] and text[1].count("%") == 5
    assert text[2].split()[:3] == ["100%", "80", "1"] and text[2].endswith("-")
    assert "centroid, 40 test images" in text[3] and "but at least one image" in text[3]


@pytest.mark.parametrize("how", sorted(CLASSIFIERS))
def test_one_image_per_class_is_enough_for_every_classifier(how):
    train, test = blobs(40, width=4, spread=0.1), blobs(40, width=4, spread=0.1, seed=1)
    table = label_fractions(train, test, (), (1,), repeats=2, how=how)
    assert table["1-shot"].mean == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fractions": (0,)}, r"a fraction must be a number in \(0, 1\], got 0"),
        ({"shots": (0,)}, "shots must be an integer of at least 1, got 0"),
        ({"repeats": 0}, "repeats must be an integer of at least 1"),
        ({"how": "forest"}, "how='forest' is unknown; pass 'centroid', 'knn', 'linear', 'ridge' or 'svm'"),
        ({"fractions": ()}, "there are neither fractions nor shots"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        label_fractions(blobs(8), blobs(8), **options)


def test_an_unknown_row_is_named_with_those_there_are():
    table = label_fractions(blobs(8), blobs(8), (1.0,), how="centroid")
    with pytest.raises(KeyError, match="no row '5%'; the rows are 100%"):
        table["5%"]


def test_all_labels_give_what_the_plain_classifier_gives():
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(90) % 3
    rows = torch.randn(90, 20, generator=generator) + torch.nn.functional.one_hot(labels, 20) * 0.8
    rows[:, 5:] *= torch.logspace(-3, 2, 15)
    train, test = Features(rows[:60], labels[:60]), Features(rows[60:], labels[60:])
    table = label_fractions(train, test, fractions=(0.5, 1.0), repeats=2)
    assert table["100%"].accuracies == (linear_classification(train, test).top1,)
