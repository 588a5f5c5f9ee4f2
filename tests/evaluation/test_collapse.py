import math

import pytest
import torch

from superself.evaluation import effective_rank, feature_rms, feature_std, mean_cosine


def slow_feature_std(features):
    directions = [[value / math.hypot(*feature) for value in feature] for feature in features.tolist()]
    deviations = []
    for column in zip(*directions, strict=True):
        mean = sum(column) / len(column)
        deviations.append(math.sqrt(sum((value - mean) ** 2 for value in column) / len(column)))
    return sum(deviations) / len(deviations)


def slow_mean_cosine(features):
    pairs = [(a, b) for i, a in enumerate(features) for j, b in enumerate(features) if i != j]
    return sum(torch.cosine_similarity(a, b, dim=0).item() for a, b in pairs) / len(pairs)


def slow_effective_rank(features):
    eigenvalues = torch.linalg.eigvalsh(features.double().T @ features.double()).clamp_min(0)
    values = eigenvalues.sqrt().tolist()
    shares = [value / sum(values) for value in values]
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


def gaussian(images, width):
    return torch.randn(images, width, generator=torch.Generator().manual_seed(0))


def test_measures_equal_slow_versions():
    features = gaussian(20, 6) * torch.tensor([1.0, 2, 3, 4, 5, 6]) + 1
    assert feature_std(features) == pytest.approx(slow_feature_std(features), rel=1e-5)
    assert effective_rank(features) == pytest.approx(slow_effective_rank(features), rel=1e-6)
    assert mean_cosine(features) == pytest.approx(slow_mean_cosine(features), rel=1e-5)


def test_collapsed_features_have_no_deviation_and_rank_one():
    features = torch.tensor([[3.0, 4.0]]) * torch.tensor([[1.0], [2.0], [5.0]])  # of different lengths, on one line
    assert feature_std(features) == pytest.approx(0, abs=1e-7)
    assert effective_rank(features) == pytest.approx(1)


def test_zero_features_count_as_collapsed():
    assert feature_std(torch.zeros(4, 3)) == 0
    assert effective_rank(torch.zeros(4, 3)) == 1


def test_one_feature_an_image_uses_all_directions():
    # A column of the identity has mean 1/4 and mean square 1/4: deviation sqrt(1/4 - 1/16) = 0.4330.
    assert feature_std(torch.eye(4)) == pytest.approx(0.4330127)
    assert effective_rank(torch.eye(4)) == pytest.approx(4)


def test_rank_worked_by_hand():
    # Singular values 3 and 1: shares 3/4 and 1/4, entropy 0.5623, exponential 1.7548.
    assert effective_rank(torch.tensor([[3.0, 0.0], [0.0, 1.0]])) == pytest.approx(1.7547654)


def test_even_features_reach_the_reference_values():
    features = gaussian(4000, 16)
    assert feature_std(features) == pytest.approx(1 / math.sqrt(16), rel=0.01)
    assert effective_rank(features) == pytest.approx(16, rel=0.01)


def test_two_of_many_directions_count_as_two():
    features = gaussian(4000, 2) @ torch.linalg.qr(gaussian(16, 2)).Q.T
    assert effective_rank(features) == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_give_nan(value):
    features = gaussian(5, 3)
    features[2, 1] = value
    assert math.isnan(feature_std(features))
    assert math.isnan(effective_rank(features)) and math.isnan(mean_cosine(features))
    assert not math.isfinite(feature_rms(features))


def test_cosine_and_root_mean_square_worked_by_hand():
    # Cosines between the three: 0, 1/sqrt(2) and 1/sqrt(2). Squares: 0 + 4 + 1 + 0 + 9 + 9 = 23 over 6 values.
    features = torch.tensor([[0.0, 2.0], [1.0, 0.0], [3.0, 3.0]])
    assert mean_cosine(features) == pytest.approx(2 / 3 / math.sqrt(2))
    assert feature_rms(features) == pytest.approx(math.sqrt(23 / 6))
    assert math.isnan(mean_cosine(features[:1]))


def test_huge_features_do_not_overflow():
    features = gaussian(20, 6)
    assert feature_std(features * 1e30) == pytest.approx(feature_std(features), rel=1e-5)
    assert mean_cosine(features * 1e30) == pytest.approx(mean_cosine(features), rel=1e-5)
    assert feature_rms(features * 1e30) == pytest.approx(1e30 * feature_rms(features), rel=1e-5)
