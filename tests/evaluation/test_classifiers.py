"""Linear SVM, nearest centroid and ridge, each against scikit-learn or a slow version; and kNN's shares."""

import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import NearestCentroid as Reference

from superself.evaluation import (
    Features,
    centroid_classification,
    knn,
    knn_classification,
    knn_scores,
    linear_classification,
    ridge,
    ridge_classification,
    svm_classification,
)

CLASSIFIERS = (
    centroid_classification,
    knn_classification,
    linear_classification,
    ridge_classification,
    svm_classification,
)


def blobs(images, classes=4, width=12, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    return Features(
        torch.randn(images, width, generator=generator) * spread + 2 * torch.eye(classes, width)[labels], labels
    )


@pytest.mark.parametrize("classify", CLASSIFIERS)
def test_well_separated_classes_are_recognised_whatever_their_numbers(classify):
    train, test = blobs(80, spread=0.1), blobs(40, spread=0.1, seed=1)
    assert classify(train, test).top1 == 1
    train.labels.mul_(10).sub_(7)
    test.labels.mul_(10).sub_(7)
    result = classify(train, test)
    assert result.top1 == 1 and result.classes == ["-7", "3", "13", "23"]
    assert "80 training and 40 test images of 4 classes" in result.protocol


@pytest.mark.parametrize("classify", CLASSIFIERS)
def test_same_call_same_scores_and_inputs_stay_as_they_are(classify):
    train, test = blobs(60), blobs(40, seed=1)
    before = train.features.clone(), test.features.clone()
    state = torch.get_rng_state()
    assert torch.equal(classify(train, test).scores, classify(train, test).scores)
    assert torch.equal(train.features, before[0]) and torch.equal(test.features, before[1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("classify", CLASSIFIERS)
def test_a_test_class_without_training_images_counts_as_wrong(classify):
    train, test = blobs(80, spread=0.1), blobs(40, spread=0.1, seed=1)
    test.labels[:10] = 4
    result = classify(train, test)
    assert result.top1 == 0.75 and result.per_class["4"] == 0 and result.scores.shape == (40, 5)


@pytest.mark.parametrize("classify", [linear_classification, ridge_classification, svm_classification])
def test_one_class_cannot_be_fitted(classify):
    train = Features(torch.randn(10, 3), torch.full((10,), 4))
    with pytest.raises(ValueError, match=r"labels \[4\], and a linear probe needs at least 2 classes"):
        classify(train, train)


@pytest.mark.parametrize("classify", [linear_classification, svm_classification])
def test_C_must_be_positive(classify):
    with pytest.raises(ValueError, match="C must be a number above 0, got 0"):
        classify(blobs(8), blobs(8), C=0)


def test_shares_of_the_vote_are_weights_divided_by_their_sum():
    # Cosines 1 and 0.6 at temperature 0.4: weights 1 and exp(-1).
    train, labels = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([2, 0])
    weight = torch.tensor(-1.0).exp()
    shares = knn_scores(train, labels, torch.tensor([[3.0, 0.0]]), k=2, temperature=0.4)
    assert torch.allclose(shares, torch.stack([weight, torch.tensor(0.0), torch.tensor(1.0)])[None] / (1 + weight))


def test_the_largest_of_many_are_found_through_groups(monkeypatch):
    monkeypatch.setattr(knn, "GROUP", 4)
    values = torch.randn(5, 103, generator=torch.Generator().manual_seed(0))
    values[0, 100:] = 9.0 + torch.arange(3)  # behind the last whole group
    values[1, 8:12] = 9.0 + torch.arange(4)  # all in one group
    found, expected = knn._largest(values, 6), values.topk(6, dim=1)
    assert torch.equal(found[0], expected.values) and torch.equal(found[1], expected.indices)


def test_euclidean_centroids_are_those_of_scikit_learn():
    train, test = blobs(60, spread=2.0), blobs(80, spread=2.0, seed=1)
    expected = Reference().fit(train.features.numpy(), train.labels.numpy()).predict(test.features.numpy())
    assert centroid_classification(train, test, "euclidean").predictions.tolist() == expected.tolist()


def test_cosine_centroids_ignore_the_length_of_features():
    train, test = blobs(60, spread=2.0), blobs(80, spread=2.0, seed=1)
    scores = centroid_classification(train, test).scores
    longer = Features(train.features * torch.linspace(0.1, 9, 60)[:, None], train.labels)
    assert torch.allclose(centroid_classification(longer, test).scores, scores, atol=1e-5)
    mean = torch.nn.functional.normalize(train.features[train.labels == 0], dim=1).mean(0)
    expected = torch.nn.functional.cosine_similarity(test.features, mean[None])
    assert torch.allclose(scores[:, 0], expected, atol=1e-5)
    with pytest.raises(ValueError, match="metric='l1' is unknown; pass 'cosine' or 'euclidean'"):
        centroid_classification(train, test, "l1")


@pytest.mark.parametrize("width", [12, 150])  # fewer features than images, and more
@pytest.mark.parametrize("alpha", [0.5, 300.0])
def test_ridge_has_the_predictions_of_scikit_learn(width, alpha):
    train, test = blobs(60, width=width, spread=2.0), blobs(200, width=width, spread=2.0, seed=1)
    mean, deviation = train.features.mean(0), train.features.std(0, correction=0)
    x, y = ((part.features - mean) / deviation for part in (train, test))
    expected = RidgeClassifier(alpha=alpha).fit(x.numpy(), train.labels.numpy())
    result = ridge_classification(train, test, alpha)
    assert result.predictions.tolist() == expected.predict(y.numpy()).tolist()
    # one-hot targets instead of -1 and +1
    assert torch.allclose(
        2 * result.scores - 1, torch.from_numpy(expected.decision_function(y.numpy())).float(), atol=1e-3
    )


@pytest.mark.parametrize("width", [5, 40])
def test_leave_one_out_equals_a_fit_without_each_image(width):
    train = blobs(30, width=width, classes=3, spread=3.0)
    x = train.features.double()
    x = (x - x.mean(0)) / x.std(0, correction=0)
    targets = torch.eye(3, dtype=torch.float64)[train.labels]
    rotated = ridge._rotate(x)
    shares = []
    for alpha in (0.3, 30.0, 3000.0):
        right = 0
        for place in range(30):
            rest = torch.arange(30) != place
            own, known = x[rest], targets[rest]
            middle, mean = own.mean(0), known.mean(0)
            gram = (own - middle).T @ (own - middle) + alpha * torch.eye(width)
            weights = torch.linalg.solve(gram, (own - middle).T @ (known - mean))
            right += int(((x[place] - middle) @ weights + mean).argmax() == train.labels[place])
        assert ridge.leave_one_out_accuracy(rotated, targets, alpha) == pytest.approx(right / 30)
        shares.append(right / 30)
    assert len(set(shares)) > 1


def test_ridge_takes_the_penalty_that_leaves_one_out_best():
    train, test = blobs(60, spread=3.0), blobs(60, seed=1)
    chosen = float(ridge_classification(train, test).protocol.split("alpha = ")[1].split(" ")[0])
    x = (train.features - train.features.mean(0)) / train.features.std(0, correction=0)
    rotated, targets = ridge._rotate(x), torch.eye(4)[train.labels]
    shares = {penalty * 60: ridge.leave_one_out_accuracy(rotated, targets, penalty * 60) for penalty in ridge.PENALTIES}
    assert chosen == pytest.approx(
        max(alpha for alpha, share in shares.items() if share == max(shares.values())), rel=1e-4
    )


def test_ridge_of_too_many_features_and_images_is_refused(monkeypatch):
    monkeypatch.setattr(ridge, "LARGEST", 10)
    with pytest.raises(
        ValueError, match="60 images with 12 features needs an eigendecomposition of 12 x 12, more than 10"
    ):
        ridge_classification(blobs(60), blobs(60))
