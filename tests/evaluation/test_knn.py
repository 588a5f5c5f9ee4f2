import math

import pytest
import torch

from superself.evaluation import Features, knn, knn_accuracy, knn_predict


def blobs(images, classes=3, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    return torch.randn(images, width, generator=generator) + 1.5 * torch.eye(classes, width)[labels], labels


def slow_knn(train, labels, test, k, temperature):
    predictions = []
    for query in test.tolist():
        similarities = []
        for feature, label in zip(train.tolist(), labels.tolist(), strict=True):
            cosine = sum(a * b for a, b in zip(query, feature, strict=True)) / math.hypot(*query) / math.hypot(*feature)
            similarities.append((cosine, label))
        votes = {}
        for cosine, label in sorted(similarities, reverse=True)[:k]:
            votes[label] = votes.get(label, 0) + math.exp(cosine / temperature)
        predictions.append(max(sorted(votes), key=votes.get))
    return torch.tensor(predictions)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (7, 0.1), (7, 10.0), (40, 0.5)])
def test_knn_equals_double_loop(k, temperature):
    train, labels = blobs(40)
    test, _ = blobs(30, seed=1)
    assert torch.equal(knn_predict(train, labels, test, k, temperature), slow_knn(train, labels, test, k, temperature))


def test_near_neighbours_outvote_a_majority_only_at_a_small_temperature():
    # Cosines 1, 0.5, 0.5: e^10 = 22026 against 2 e^5 = 297 at temperature 0.1; e^0.1 = 1.11 against 2.10 at 10.
    half = [0.5, math.sqrt(0.75)]
    train, labels = torch.tensor([[1.0, 0.0], half, half]), torch.tensor([0, 1, 1])
    query = torch.tensor([[2.0, 0.0]])
    assert knn_predict(train, labels, query, k=3, temperature=0.1).tolist() == [0]
    assert knn_predict(train, labels, query, k=3, temperature=10.0).tolist() == [1]


def test_length_of_features_does_not_matter():
    train, labels = blobs(40)
    test, _ = blobs(30, seed=1)
    stretched = train * torch.linspace(0.1, 10, 40)[:, None]
    assert torch.equal(knn_predict(train, labels, test, 5), knn_predict(stretched, labels, 3 * test, 5))


def test_chunks_do_not_change_the_answer(monkeypatch):
    train, labels = blobs(40)
    test, _ = blobs(30, seed=1)
    whole = knn_predict(train, labels, test, 7)
    monkeypatch.setattr(knn, "SIMILARITIES_AT_A_TIME", 40 * 4)
    assert torch.equal(knn_predict(train, labels, test, 7), whole)


def test_a_tie_goes_to_the_smallest_label():
    train, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([7, 3])
    assert knn_predict(train, labels, torch.tensor([[1.0, 1.0]]), k=2).tolist() == [3]


def test_classes_that_only_one_of_the_sets_has_are_no_error():
    train = Features(torch.eye(3), torch.tensor([0, 5, 2]))
    test = Features(torch.eye(3), torch.tensor([0, 9, 2]))
    assert knn_accuracy(train, test, k=1) == pytest.approx(2 / 3)


def test_rows_of_unreadable_images_are_left_out():
    train, test = Features(*blobs(40)), Features(*blobs(30, seed=1))
    expected = knn_accuracy(
        Features(train.features[1:], train.labels[1:]), Features(test.features[2:], test.labels[2:])
    )
    train.features[0], test.features[:2] = math.nan, math.nan
    assert knn_accuracy(train, test) == expected


@pytest.mark.parametrize("labels", [None, torch.zeros(40), torch.zeros(40, 2, dtype=torch.int64)])
def test_labels_must_be_classes(labels):
    train = Features(*blobs(40))
    with pytest.raises(ValueError, match=r"test has .*pass integer labels \(N,\)"):
        knn_accuracy(train, Features(train.features, labels))


def test_no_readable_image_is_an_error():
    train = Features(*blobs(40))
    with pytest.raises(ValueError, match="test has no readable images"):
        knn_accuracy(
            train, Features(torch.full((3, train.features.shape[1]), math.nan), torch.zeros(3, dtype=torch.int64))
        )


def test_a_tiny_temperature_does_not_overflow():
    train, labels = blobs(40)
    nearest = knn_predict(train, labels, train, k=5, temperature=1e-4)
    assert torch.equal(nearest, labels)  # the image itself decides


@pytest.mark.parametrize("k", [0, 41])
def test_k_must_be_between_one_and_the_number_of_images(k):
    train, labels = blobs(40)
    with pytest.raises(ValueError, match=rf"k must be between 1 and the number of training images \(40\), got {k}"):
        knn_predict(train, labels, train, k=k)


def test_temperature_must_be_positive():
    train, labels = blobs(40)
    with pytest.raises(ValueError, match=r"temperature must be a number above 0, got 0 "):
        knn_predict(train, labels, train, temperature=0)
