"""How many directions do the features use? Measures of the spectrum of features: RankMe, alpha-ReQ, LiDAR."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from superself.basics.validate import require_count, require_positive
from superself.evaluation.collapse import effective_rank, entropy_rank, feature_std
from superself.evaluation.subject import Subject
from superself.evaluation.unlabelled import UnlabelledEvaluator, view_features

ROWS = 8192  # features at once in float64
ALPHA_REQ_RANKS = (4, 100)  # of the eigenvalues that the authors' code fits
FEWEST_RANKS = 4  # eigenvalues that a line is fitted to at least


def rankme(features: Tensor) -> float:
    """How many directions the features use, from 1 (collapsed) to min(N, D): ``effective_rank``, under the paper's name.

    Source: Garrido et al., RankMe, arXiv:2210.02885.
    Shape:
        features (N, D) -> number; NaN if a feature is not finite.
    """
    return effective_rank(features)


def covariance_spectrum(features: Tensor) -> Tensor:
    """The eigenvalues of the covariance of the features over the images, largest first.

    In float64; apart from the features it takes memory for one D x D matrix and a few thousand rows.

    Shape:
        features (N, D) -> (D,) float64, none below 0; NaN if a feature is not finite.
    """
    if not features.isfinite().all():
        return torch.full((features.shape[1],), math.nan, dtype=torch.float64)
    parts = features.detach().cpu().split(ROWS)
    mean = sum(part.double().sum(0) for part in parts) / len(features)
    centred = (part.double() - mean for part in parts)
    covariance = sum(part.T @ part for part in centred) / len(features)
    return torch.linalg.eigvalsh(covariance).flip(0).clamp_min(0)


def alpha_req(features: Tensor, ranks: tuple[int, int] = ALPHA_REQ_RANKS) -> float:
    """The exponent alpha of a power law: the i-th largest eigenvalue of the covariance falls as i^-alpha.

    Near 0, all directions have equal variance; a large alpha means that few directions hold nearly all of it. The paper finds
    good features where alpha is close to 1. It is the slope of a line through log eigenvalue against log rank, by least
    squares with weights 1 / rank, as in the authors' code.

    Source: Agrawal et al., alpha-ReQ: Assessing Representation Quality in Self-Supervised Learning by measuring
        eigenspectrum decay, NeurIPS 2022. The range of ranks and the weights are those of the authors' code (fastssl); the
        paper does not give them.
    Deviations: eigenvalues at the level of rounding errors are left out, and so are ranks above D.
    Args:
        features: of more images than dimensions, otherwise the tail says more about N than about the features.
        ranks: the first and the last eigenvalue that count, from 1.
    Shape:
        features (N, D) -> number; NaN if a feature is not finite, or fewer than 4 of these eigenvalues are positive.
    Raises:
        ValueError: if ``ranks`` is not a range of at least 4 positive integers.
    """
    first, last = ranks
    require_count("the first of ranks", first, "is the place of an eigenvalue, from 1")
    if last - first + 1 < FEWEST_RANKS:
        raise ValueError(f"ranks={ranks} must be (first, last) with at least {FEWEST_RANKS} eigenvalues in between.")
    values = covariance_spectrum(features)
    noise = len(values) * torch.finfo(values.dtype).eps * values[0]
    used = min(last, int((values > noise).sum()))  # NaN is not
    if used - first + 1 < FEWEST_RANKS:
        return math.nan
    rank = torch.arange(first, used + 1, dtype=torch.float64)
    x, y, weight = rank.log(), values[first - 1 : used].log(), 1 / rank / (1 / rank).sum()
    x, y = x - weight @ x, y - weight @ y
    return float(-(weight @ (x * y)) / (weight @ (x * x)))


def lidar(views: Tensor, delta: float = 1e-4) -> float:
    """How many directions tell images apart in spite of their views: the effective rank of the LDA matrix.

    With mean m_x of the q views of image x and mean m of all: S_b = mean_x (m_x - m)(m_x - m)^T, S_w = mean over images and
    views of (z - m_x)(z - m_x)^T + delta I, and the exponential of the entropy of the normalised eigenvalues of
    S_w^(-1/2) S_b S_w^(-1/2). From 1 to min(N - 1, D). Noise that differs between the views of an image adds to RankMe, but
    not to LiDAR.

    Source: Thilak et al., LiDAR, arXiv:2312.04000, Sec. 3.
    Deviations: 0 log 0 counts as 0, where the paper adds a small number; features are divided by their root mean square
        first, so that delta means the same at any scale; computed in float64.
    Args:
        views: features of q views of each image; the paper takes q = 50 (10 for some) and more images than dimensions.
        delta: added to the diagonal, as a fraction of the mean square of a centred feature; the paper gives no number. With
            few views it also decides how much directions without variance within images count.
    Shape:
        views (N, q, D) -> number; NaN if a feature is not finite, or N < 2.
    Raises:
        ValueError: if there are fewer than two views of each image.
    """
    if views.ndim != 3 or views.shape[1] < 2:
        raise ValueError(
            f"LiDAR compares views of the same image, and got {tuple(views.shape)}; pass features (N, q, D) of q >= 2 views."
        )
    require_positive("delta", delta, "keeps the covariance within images invertible")
    images, count, width = views.shape
    if images < 2 or not views.isfinite().all():
        return math.nan
    parts = views.detach().cpu().split(max(1, ROWS // count))
    means = torch.cat([part.double().mean(1) for part in parts])  # (N, D)
    means -= means.mean(0)
    between = means.T @ means / images  # S_b
    within = torch.zeros(width, width, dtype=torch.float64)
    for part in parts:
        deviation = (part.double() - part.double().mean(1, keepdim=True)).flatten(0, 1)
        within += deviation.T @ deviation / (images * count)
    scale = float(between.trace() + within.trace()) / width  # mean square of a centred feature
    if scale == 0:
        return 1.0  # all features are the same
    values, vectors = torch.linalg.eigh(within / scale)
    whiten = vectors * (values.clamp_min(0) + delta).rsqrt()  # S_w^(-1/2) up to a rotation, which changes no eigenvalue
    return entropy_rank(torch.linalg.eigvalsh(whiten.T @ (between / scale) @ whiten).clamp_min(0))


class Spectrum(UnlabelledEvaluator):
    """RankMe, alpha-ReQ and the standard deviation of the features of a data set.

    "rankme" (from 1, collapsed, to D), "alpha_req" (close to 1 is good; NaN if there are too few directions), "std" (of
    features at length one; 1 / sqrt(D) when uniform, 0 when collapsed) and "std_share" (std times sqrt(D)).

    Args:
        dataset: anything that ``open_images`` takes; None takes the subject's own images.
        every: see Evaluator.
    """

    name = "spectrum"

    def __init__(self, dataset: Any = None, every: int = 1) -> None:
        super().__init__(dataset, every=every)

    def evaluate(self, subject: Subject) -> dict[str, float]:
        """The four values, of the features that all evaluators of this data set share."""
        features = subject.features(self.opened(subject)).features
        std = feature_std(features)
        share = std * math.sqrt(features.shape[1])
        return {"rankme": rankme(features), "alpha_req": alpha_req(features), "std": std, "std_share": share}


class LiDAR(UnlabelledEvaluator):
    """LiDAR: how many directions tell images apart in spite of their views, of ``count`` images with ``views`` views each.

    Args:
        dataset: anything that ``open_images`` takes; None takes the subject's own images.
        count: images, spread evenly over the data set; should exceed the number of features.
        views: of each image; the paper has 50 (10 for some), which take ``count`` x ``views`` forward passes.
        augment: what makes the views; None takes the subject's, or "simclr". To compare methods, pass the same for all.
        every: see Evaluator.
    """

    name: ClassVar[str] = "lidar"

    def __init__(
        self, dataset: Any = None, count: int = 1000, views: int = 10, augment: Any = None, every: int = 1
    ) -> None:
        super().__init__(dataset, count, every)
        require_count("views", views, "is the number of views of each image", minimum=2)
        self.views, self.augment = views, augment

    def evaluate(self, subject: Subject) -> dict[str, float]:
        """The value."""
        images = self.opened(subject)
        return {"lidar": lidar(view_features(subject, images, self.views, self.count, self.augment))}
