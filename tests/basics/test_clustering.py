"""PCA whitening, k-means and normalised mutual information."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from superself.basics import clustering
from superself.basics.clustering import (
    kmeans,
    nearest_centroids,
    normalized_mutual_information,
    spread_points,
    whiten,
)

from tensors import noise


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(sizes, dimensions=5, spread=0.05):
    """Points around random unit vectors that are far apart, and the number of each point's vector."""
    centres = 3 * torch.eye(dimensions)[: len(sizes)]
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return centres[labels] + spread * torch.randn(len(labels), dimensions, generator=generator(1)), labels


# ---- whitening ---------------------------------------------------------------------------------------------------------


def test_whitened_rows_are_the_principal_components_over_their_deviations_at_unit_length():
    features = noise(40, 6) * torch.tensor([5.0, 4, 3, 2, 1, 0.5]) + 7
    centred = features.double().numpy() - features.double().numpy().mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    slow = left[:, :3]  # unit columns: the components divided by their deviations, up to one factor for all
    slow = slow / np.linalg.norm(slow, axis=1, keepdims=True)
    found = whiten(features, 3).double().numpy()
    assert found.shape == (40, 3)
    assert np.allclose(np.abs(found[:, ::-1]), np.abs(slow), atol=1e-4)  # the sign of a direction is arbitrary
    assert np.allclose(found @ found.T, slow @ slow.T, atol=1e-4)


def test_whitening_keeps_only_components_that_exist():
    flat = noise(30, 2) @ noise(2, 8, seed=1)  # 2 directions in 8 columns
    assert whiten(flat, 5).shape == (30, 2)
    assert whiten(noise(4, 8), 6).shape[1] <= 3  # 4 points span 3 directions
    assert torch.equal(whiten(torch.ones(6, 4), 3), torch.zeros(6, 1))


def test_whitening_does_not_depend_on_shift_and_scale_and_takes_half_precision():
    features = noise(30, 4)
    assert torch.allclose(whiten(100 * features + 3, 4).abs(), whiten(features, 4).abs(), atol=1e-3)
    assert whiten(features.bfloat16(), 2).dtype == torch.float32


# ---- k-means -----------------------------------------------------------------------------------------------------------


def test_kmeans_finds_separate_groups():
    points, labels = blobs([10, 20, 5, 15])
    found, centroids = kmeans(points, 4, generator())
    assert normalized_mutual_information(found, labels) == pytest.approx(1)
    for cluster in range(4):
        assert torch.allclose(centroids[cluster], points[found == cluster].mean(0), atol=1e-5)


def test_every_point_has_the_nearest_centroid():
    points, centroids = noise(50, 3), noise(7, 3, seed=2)
    slow = [min(range(7), key=lambda k: ((x - centroids[k]) ** 2).sum().item()) for x in points]
    assert nearest_centroids(points, centroids).tolist() == slow


def test_chunks_do_not_change_the_nearest_centroid(monkeypatch):
    points, centroids = noise(50, 3), noise(7, 3, seed=2)
    whole = nearest_centroids(points, centroids)
    monkeypatch.setattr(clustering, "CHUNK", 20)
    assert torch.equal(nearest_centroids(points, centroids), whole)


def test_kmeans_repeats_with_the_seed_and_leaves_the_random_state_alone():
    points = noise(200, 4)
    before = torch.get_rng_state()
    first, second, other = (kmeans(points, 12, generator(seed))[0] for seed in (3, 3, 4))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("spherical", [False, True])
def test_empty_clusters_are_filled_by_splitting_large_ones(spherical):
    points = torch.cat([torch.ones(60, 3), noise(60, 3) * 0.3 - 2])  # half of the first centroids coincide
    for seed in range(5):
        found, _ = kmeans(points, 12, generator(seed), spherical=spherical)
        assert (found.bincount(minlength=12) > 0).all()


def test_points_that_are_all_alike_do_not_break_it():
    for value in (0.0, 2.0):
        found, centroids = kmeans(torch.full((20, 3), value), 4, generator())
        assert found.shape == (20,) and centroids.isfinite().all()


def test_spherical_centroids_have_unit_length_and_the_direction_of_the_mean():
    points = torch.nn.functional.normalize(noise(80, 4), dim=1)
    found, centroids = kmeans(points, 3, generator(), 50, spherical=True)
    for cluster in range(3):
        mean = points[found == cluster].mean(0)
        assert torch.allclose(centroids[cluster], mean / mean.norm(), atol=1e-4)


def test_centroids_of_many_points_are_fitted_to_a_sample_and_all_points_are_assigned(monkeypatch):
    monkeypatch.setattr(clustering, "FULL_SIZE", 40)
    monkeypatch.setattr(clustering, "PER_CLUSTER", 15)
    points, labels = blobs([100, 100, 100])
    seen = []
    monkeypatch.setattr(clustering, "nearest_centroids", lambda p, c: seen.append(len(p)) or nearest_centroids(p, c))
    found, _ = kmeans(points, 3, generator(2))
    assert set(seen[:-1]) == {45} and seen[-1] == 300
    assert normalized_mutual_information(found, labels) == pytest.approx(1)


@pytest.mark.parametrize("clusters", [0, 6])
def test_more_clusters_than_points_are_refused(clusters):
    with pytest.raises(ValueError, match=f"clusters={clusters} is not possible for 5 points; pass from 1 to 5"):
        kmeans(noise(5, 2), clusters, generator())


# ---- agreement ---------------------------------------------------------------------------------------------------------


def test_agreement_equals_that_of_scikit_learn():
    first, second = (torch.randint(k, (300,), generator=generator(k)) for k in (5, 9))
    second[:150] = first[:150]
    expected = normalized_mutual_info_score(first, second, average_method="geometric")
    assert normalized_mutual_information(first, second) == pytest.approx(expected)
    assert normalized_mutual_information(second, first) == pytest.approx(expected)


def test_agreement_by_hand():
    a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 2, 2])
    # H(A) = ln 2, H(B) = 1.5 ln 2, and B determines A, so I = ln 2
    assert normalized_mutual_information(a, b) == pytest.approx(1 / math.sqrt(1.5))
    assert normalized_mutual_information(a, 5 - a) == pytest.approx(1)
    assert normalized_mutual_information(a, torch.tensor([0, 1, 0, 1])) == pytest.approx(0, abs=1e-7)
    assert normalized_mutual_information(a, torch.zeros(4).long()) == 0
    assert normalized_mutual_information(torch.zeros(4).long(), torch.ones(4).long()) == 1


def test_spread_points_find_the_small_cluster():
    """Random starting points miss 3 of 1,000 points far away in nearly every draw."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(1000, 4, generator=generator)
    points[[5, 500, 900]] += 30
    for seed in range(10):
        rows = spread_points(points, 4, torch.Generator().manual_seed(seed)).tolist()
        assert len(set(rows)) == 4 and len({5, 500, 900} & set(rows)) == 1
    labels, _ = kmeans(points, 2, torch.Generator().manual_seed(0), spread=True)
    assert labels.bincount().min() == 3


def test_spread_points_of_equal_points():
    assert len(spread_points(torch.ones(5, 2), 3, torch.Generator().manual_seed(0))) == 3
