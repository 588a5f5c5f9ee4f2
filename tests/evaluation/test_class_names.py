import pytest
import torch

from superself.evaluation import Features, knn_classification
from superself.evaluation.class_names import renumbered


def test_names_decide_and_missing_labels_stay():
    labels = torch.tensor([0, 1, -1])
    assert renumbered(labels, ["b", "a"], ["a", "b"]).tolist() == [1, 0, -1]
    assert renumbered(labels, None, None) is labels and renumbered(labels, None, ["a", "b"]) is labels


def test_numbers_match_names_that_are_numbers():
    assert renumbered(torch.tensor([10, 2, -1]), None, ["1", "10", "2"]).tolist() == [1, 2, -1]
    assert renumbered(torch.tensor([0, 2]), ["1", "10", "2"], None).tolist() == [1, 2]


def test_a_class_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="test has the classes"):
        renumbered(torch.tensor([0]), ["c"], ["a", "b"])
    with pytest.raises(ValueError, match="'3'"):
        renumbered(torch.tensor([3]), None, ["1", "2"])


def test_named_training_images_and_numbered_test_images_are_matched():
    """Classes 1, 2 and "other" in training, and a test table with 1 and 2 only, whose labels are numbers."""
    points = torch.eye(3)
    train = Features(points.repeat(5, 1), torch.arange(3).repeat(5), classes=["1", "2", "other"])
    test = Features(points[:2].repeat(5, 1), torch.tensor([1, 2]).repeat(5))
    assert knn_classification(train, test, k=3).top1 == 1.0


@pytest.mark.parametrize("swap", [False, True])
def test_folders_of_numbers_match_a_table_of_numbers(swap):
    points = torch.eye(3)
    named = Features(points.repeat(5, 1), torch.arange(3).repeat(5), classes=["1", "10", "9"])
    numbered = Features(points.repeat(5, 1), torch.tensor([1, 10, 9]).repeat(5))
    train, test = (numbered, named) if swap else (named, numbered)
    assert knn_classification(train, test, k=3).top1 == 1.0
