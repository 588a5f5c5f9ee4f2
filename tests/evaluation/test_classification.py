import math

import pytest
import torch

from superself.evaluation import Classification, Features
from superself.evaluation.classification import match_classes

SCORES = torch.tensor([[3.0, 1, 2], [1, 3, 2], [3, 2, 1], [0, 0, 1]])
LABELS = torch.tensor([0, 0, 0, 2])


def random_result(images=60, classes=8):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(5, (images, classes), generator=generator).float()  # many ties
    return Classification(scores, torch.randint(classes, (images,), generator=generator))


def test_accuracies_worked_by_hand():
    result = Classification(SCORES, LABELS, ["cat", "dog", "owl"])
    assert result.predictions.tolist() == [0, 1, 0, 2]
    assert result.top1 == 0.75
    assert result.confusion.tolist() == [[2, 1, 0], [0, 0, 0], [0, 0, 1]]  # rows are the truth
    per_class = result.per_class
    assert per_class["cat"] == pytest.approx(2 / 3) and math.isnan(per_class["dog"]) and per_class["owl"] == 1
    assert result.balanced == pytest.approx((2 / 3 + 1) / 2)
    assert result.top(2) == 0.75  # the second image's class 0 is last
    assert result.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_top_k_equals_a_stable_sort_of_each_row():
    result = random_result()
    for k in (1, 2, 5, 7):
        hits = [
            label in sorted(range(8), key=lambda column: (-row[column], column))[:k]
            for row, label in zip(result.scores.tolist(), result.labels.tolist(), strict=True)
        ]
        assert result.top(k) == pytest.approx(sum(hits) / len(hits))
    assert result.top(1) == result.top1 and result.top(5) == result.top5


def test_confusion_equals_a_double_loop():
    result = random_result()
    expected = torch.zeros(8, 8, dtype=torch.int64)
    for truth, guess in zip(result.labels.tolist(), result.predictions.tolist(), strict=True):
        expected[truth, guess] += 1
    assert torch.equal(result.confusion, expected)


def test_a_class_that_was_not_seen_is_never_among_the_best():
    scores = torch.tensor([[1.0, -torch.inf, -torch.inf]])
    assert Classification(scores, torch.tensor([1])).top(2) == 0


def test_top_five_of_five_classes_is_an_error():
    with pytest.raises(
        ValueError, match="top-5 accuracy of 5 classes says nothing about the features; pass a k from 1 to 4"
    ):
        _ = Classification(torch.rand(3, 5), torch.tensor([0, 1, 4])).top5


def test_wilson_interval_worked_by_hand():
    # p = 1, N = 4, z = 1.96: (1 + 0.4802 +- 1.96 sqrt(0.06002)) / 1.9604 = 0.5101 and 1.
    low, high = Classification(torch.eye(2)[[0, 1, 0, 1]], torch.tensor([0, 1, 0, 1])).confidence_interval()
    assert low == pytest.approx(0.5101, abs=1e-4) and high == pytest.approx(1.0)
    wide = Classification(SCORES, LABELS).confidence_interval(0.99)
    assert wide[0] < Classification(SCORES, LABELS).confidence_interval()[0] < 0.75


def test_table_names_the_classes_and_their_mistakes():
    text = str(Classification(SCORES, LABELS, ["cat", "dog", "owl"], "Fitted to nothing."))
    assert "top-1 75.0%" in text and "balanced 83.3%" in text and "4 test images of 2 classes" in text
    assert "Fitted to nothing." in text and "top-5" not in text
    cat, owl = text.splitlines()[-2:]
    assert cat.split() == ["cat", "3", "66.7%", "dog", "(1)"] and owl.split() == ["owl", "1", "100.0%", "-"]


def test_table_of_many_classes_shows_the_worst():
    labels = torch.arange(30)
    scores = torch.eye(30)
    scores[29] = scores[0]
    text = str(Classification(scores, labels)).splitlines()
    assert text[2].split() == ["29", "1", "0.0%", "0", "(1)"]
    assert len(text) == 2 + 20 + 1 and text[-1] == "and 10 classes with higher accuracy"
    assert "top-5 96.7%" in text[0]


@pytest.mark.parametrize(
    ("scores", "labels", "classes", "message"),
    [
        (torch.rand(3, 2), torch.tensor([0, 1]), None, r"scores \(3, 2\) and labels \(2,\) do not fit"),
        (torch.rand(2, 2), torch.tensor([0, 2]), None, "labels are from 0 to 2, and there are scores for 2 classes"),
        (torch.rand(2, 2), torch.tensor([0, 1]), ["a"], "1 class names for 2 classes"),
        (torch.full((2, 2), math.nan), torch.tensor([0, 1]), None, "scores contain NaN"),
    ],
)
def test_what_does_not_fit_is_refused(scores, labels, classes, message):
    with pytest.raises(ValueError, match=message):
        Classification(scores, labels, classes)


def test_labels_with_gaps_are_renumbered_and_become_names():
    train = Features(torch.rand(3, 2), torch.tensor([5, 2, 5]))
    task = match_classes(train, Features(torch.rand(2, 2), torch.tensor([9, 5])))
    assert task.classes == ["2", "5", "9"] and task.count == 3
    assert task.seen.tolist() == [0, 1] and task.labels.tolist() == [1, 0, 1] and task.test_labels.tolist() == [2, 1]
    result = task.result(torch.zeros(2, 2), "")
    assert result.scores[:, 2].tolist() == [-torch.inf, -torch.inf]


def test_class_names_bring_the_numbers_of_the_test_set_into_line():
    train = Features(torch.rand(2, 2), torch.tensor([0, 1]), classes=["cat", "dog"])
    test = Features(torch.rand(2, 2), torch.tensor([0, 0]), classes=["dog"])
    assert match_classes(train, test).test_labels.tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"test has the classes \['owl'\], which train does not have"):
        match_classes(train, Features(test.features, test.labels, classes=["owl"]))


def test_features_of_two_backbones_are_refused():
    train = Features(torch.rand(2, 2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="train has features of width 2 and test of 3"):
        match_classes(train, Features(torch.rand(2, 3), torch.tensor([0, 1])))
