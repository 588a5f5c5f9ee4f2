"""RankMe, alpha-ReQ and LiDAR."""

import math

import numpy as np
import pytest
import torch

from superself.data import open_images
from superself.evaluation import (
    LiDAR,
    Spectrum,
    alpha_req,
    effective_rank,
    feature_rms,
    feature_std,
    lidar,
    mean_cosine,
    rankme,
    view_features,
)
from superself.evaluation.spectrum import covariance_spectrum
from superself.evaluation.subject import Subject

from cases import TinyBackbone, tiny_images
from tensors import noise


def with_spectrum(eigenvalues, images=400):
    """Features whose covariance has exactly these eigenvalues, in random directions and with a mean."""
    width = len(eigenvalues)
    columns = noise(images, width).double()
    columns = torch.linalg.qr(columns - columns.mean(0)).Q * math.sqrt(images)  # mean 0, covariance 1
    turn = torch.linalg.qr(noise(width, width, seed=1).double()).Q
    return columns @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64).sqrt()) @ turn.T + 3


def slow_rank(features):
    """From the singular values themselves."""
    shares = torch.linalg.svdvals(features)
    return torch.special.entr(shares / shares.sum()).sum().exp().item()


def slow_alpha(eigenvalues, first, last):
    """The weighted line through the points (log rank, log eigenvalue), by numpy."""
    ranks = np.arange(first, min(last, len(eigenvalues)) + 1)
    values = np.array(eigenvalues)[ranks - 1]
    return -np.polyfit(np.log(ranks), np.log(values), 1, w=np.sqrt(1 / ranks))[0]  # numpy squares w


def slow_lidar(views, delta):
    """LDA with loops over images and views."""
    images, count, width = views.shape
    means = views.mean(1)
    total = means.mean(0)
    between, within = torch.zeros(2, width, width, dtype=torch.float64)
    for image in range(images):
        difference = means[image] - total
        between += torch.outer(difference, difference) / images
        for view in views[image]:
            within += torch.outer(view - means[image], view - means[image]) / (images * count)
    within += delta * (between.trace() + within.trace()) / width * torch.eye(width)
    shares = torch.linalg.eigvals(torch.linalg.inv(within) @ between).real.clamp_min(0)
    shares = (shares / shares.sum()).tolist()
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


@pytest.fixture
def _small_parts(monkeypatch):
    monkeypatch.setattr("superself.evaluation.collapse.ROWS", 7)
    monkeypatch.setattr("superself.evaluation.spectrum.ROWS", 7)


@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (20, 20)])
def test_rank_from_the_gram_matrix_is_that_of_the_singular_values(shape):
    features = noise(*shape) * torch.arange(1, shape[1] + 1) + 1
    assert rankme(features) == effective_rank(features) == pytest.approx(slow_rank(features.double()), rel=1e-6)


@pytest.mark.usefixtures("_small_parts")
def test_parts_make_no_difference():
    features, views = noise(20, 6), noise(9, 3, 4).double()
    parts = [f(features) for f in (rankme, feature_std, mean_cosine, feature_rms)]
    whole = features.double()
    unit = torch.nn.functional.normalize(whole, dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(0).sum() / (20 * 19)
    expected = [slow_rank(whole), unit.std(0, correction=0).mean(), cosines, whole.square().mean().sqrt()]
    assert parts == pytest.approx([float(value) for value in expected], rel=1e-6)
    assert lidar(views) == pytest.approx(slow_lidar(views, 1e-4))
    torch.testing.assert_close(covariance_spectrum(features), torch.linalg.eigvalsh(whole.T.cov(correction=0)).flip(0))


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0, 2.5])
def test_alpha_of_a_power_law_is_its_exponent(alpha):
    features = with_spectrum([rank**-alpha for rank in range(1, 121)])
    assert alpha_req(features) == pytest.approx(alpha, abs=1e-9)
    assert alpha_req(1000 * features) == pytest.approx(alpha, abs=1e-9)


def test_alpha_is_the_slope_of_a_weighted_line_through_ranks_4_to_100():
    values = sorted((noise(120).abs() + 0.01).tolist(), reverse=True)
    assert alpha_req(with_spectrum(values)) == pytest.approx(slow_alpha(values, 4, 100), rel=1e-6)
    assert alpha_req(with_spectrum(values[:50])) == pytest.approx(slow_alpha(values[:50], 4, 100), rel=1e-6)
    assert alpha_req(with_spectrum(values), ranks=(1, 20)) == pytest.approx(slow_alpha(values, 1, 20), rel=1e-6)


def test_only_directions_with_variance_count_for_alpha():
    values = [rank**-1.5 for rank in range(1, 31)]
    assert alpha_req(with_spectrum([*values, *[0.0] * 70])) == pytest.approx(1.5, abs=1e-6)
    assert math.isnan(alpha_req(with_spectrum([*values[:6], *[0.0] * 70])))  # ranks 4 to 6 are too few
    assert math.isnan(alpha_req(torch.ones(10, 50)))


def test_ranks_that_make_no_line_are_refused():
    with pytest.raises(ValueError, match=r"ranks=\(4, 6\) must be"):
        alpha_req(noise(10, 20), ranks=(4, 6))


def test_lidar_equals_loops_over_images_and_views():
    views = noise(12, 3, 5).double() + noise(12, 1, 5, seed=1) * torch.tensor([1.0, 2, 3, 4, 5])
    assert lidar(views) == pytest.approx(slow_lidar(views, 1e-4), rel=1e-6)
    assert lidar(views, delta=0.5) == pytest.approx(slow_lidar(views, 0.5), rel=1e-6)


def test_lidar_worked_by_hand():
    # Two images at (+-2, 0) and two at (0, +-1), two views each that differ by +-1 in the first and +-1/2 in the second axis
    # alternately. S_b = diag(8, 2) / 4 = diag(2, 1/2); S_w = diag(1/2, 1/8): ratios 4 and 4, so two directions.
    centres = torch.tensor([[2.0, 0], [-2, 0], [0, 1], [0, -1]])
    shifts = torch.tensor([[1.0, 0], [0, 0.5], [1, 0], [0, 0.5]])
    views = torch.stack([centres + shifts, centres - shifts], 1)
    assert lidar(views, delta=1e-12) == pytest.approx(2)
    # With twice the noise in the second axis: S_w = diag(1/2, 1/2), ratios 4 and 1, shares 0.8 and 0.2.
    shifts[:, 1] *= 2
    views = torch.stack([centres + shifts, centres - shifts], 1)
    assert lidar(views, delta=1e-12) == pytest.approx(math.exp(-0.8 * math.log(0.8) - 0.2 * math.log(0.2)))


def test_lidar_does_not_count_directions_in_which_views_differ_only():
    signal, nuisance = noise(200, 1, 4), noise(200, 10, 12, seed=1)
    views = torch.cat([signal.expand(-1, 10, -1) + 0.1 * noise(200, 10, 4, seed=2), nuisance], 2)
    assert rankme(views.flatten(0, 1)) > 10
    assert lidar(views) == pytest.approx(4, rel=0.05)


def test_lidar_of_collapsed_features_is_1():
    assert lidar(torch.ones(6, 3, 4)) == 1
    line = noise(50, 1, 1) * torch.tensor([1.0, 2, 3]) + 0.01 * noise(50, 4, 3, seed=1)
    assert lidar(line) == pytest.approx(1, abs=0.02)


def test_lidar_does_not_depend_on_the_scale():
    views = noise(20, 3, 5) + noise(20, 1, 5, seed=1)
    assert lidar(1e-6 * views) == pytest.approx(lidar(views), rel=1e-4)


def test_wrong_input_of_lidar():
    with pytest.raises(ValueError, match=r"views of the same image, and got \(5, 1, 3\)"):
        lidar(noise(5, 1, 3))
    bad = noise(5, 2, 3)
    bad[0, 0, 0] = math.inf
    assert math.isnan(lidar(bad)) and math.isnan(lidar(noise(1, 2, 3))) and math.isnan(alpha_req(bad[:, 0]))


def test_the_evaluators_give_the_measures_of_the_subject():
    images = open_images(tiny_images(12))
    subject = Subject(TinyBackbone(), images=images)
    features = subject.features(images).features
    std = feature_std(features)
    values = Spectrum().evaluate(subject)
    assert values == pytest.approx(
        {"rankme": rankme(features), "alpha_req": alpha_req(features), "std": std, "std_share": 4 * std}, nan_ok=True
    )
    expected = lidar(view_features(subject, images, views=3, count=8))
    assert LiDAR(count=8, views=3).evaluate(subject) == {"lidar": expected} and 1 < expected <= 7
