"""Linear classifiers on standardised features: one smooth convex problem per strength of the penalty, solved by L-BFGS."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F

WIDEST = (
    4096  # features up to which their covariance conditions the problem: its Cholesky factor takes D^3 / 3 operations
)
SCORES_AT_A_TIME = 2**20  # of a chunk of images, in float32: 4 MiB
ROWS_AT_A_TIME = 4096
ITERATIONS = 1000
ONE_THREAD = 2**30  # multiplications of a pass up to which one thread is used


class Scale(NamedTuple):
    """Mean and standard deviation (D,) of the training features; of a constant feature the deviation is 1."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, features: Tensor, population: Tensor | None = None) -> Scale:
        """Measures features (N, D), and the deviation of ``population`` (M, D) instead of theirs if there is one."""
        low, high = (features if population is None else population).aminmax(dim=0)
        deviation, mean = torch.std_mean(_working(features), dim=0, correction=0)
        if population is not None:
            deviation = _working(population).std(dim=0, correction=0)
        constant = (low == high) | (deviation == 0)
        return cls(torch.where(constant, low.to(mean.dtype), mean), torch.where(constant, 1.0, deviation))

    def __call__(self, features: Tensor) -> Tensor:
        """Standardised features (N, D), in float32, or in float64 if that is what they are."""
        return _working(features).sub(self.mean).div_(self.deviation)


class LinearProblem:
    """A linear classifier with an L2 penalty, to be fitted with one or several strengths of it.

    "logistic" minimises C sum_i -log softmax(W x_i + b)[y_i] + ||W||^2 / 2, and with two classes the logistic loss of one
    weight vector, as scikit-learn's LogisticRegression does. "squared_hinge" minimises C sum_ik max(0, 1 - t_ik (w_k x_i +
    b_k))^2 + (||W||^2 + ||b||^2) / 2 with t = +1 for the class of the image and -1 for all others, as LinearSVC does.

    The features are standardised first. L-BFGS works on V = L^T W, where L L^T = s X^T X / N + I / (C N) bounds the curvature
    or comes near to it: where features are correlated, it needs several times as many passes without that.
    Memory: a standardised copy of the features (N, D), and D^2 + 20 D K numbers in float64.

    Args:
        features: (N, D).
        labels: (N,) from 0 to K - 1; every class occurs.
        loss: "logistic" or "squared_hinge".
        population: features (M, D) whose deviations scale the features; None for those of ``features``.
    """

    def __init__(
        self, features: Tensor, labels: Tensor, loss: str = "logistic", population: Tensor | None = None
    ) -> None:
        self.scale, self.labels, self.loss = Scale.of(features, population), labels, loss
        self.x = self.scale(features)
        self.classes = int(labels.max()) + 1
        self.targets = F.one_hot(labels, self.classes).to(self.x.dtype)  # (N, K)
        self.covariance: Tensor | None = None
        if features.shape[1] <= WIDEST:
            self.covariance = _on_cpu(self.x.T @ self.x) / len(features)  # (D, D)

    def path(self, strengths: Sequence[float]) -> Iterator[tuple[float, Tensor]]:
        """Fits all strengths C, the strongest penalty first; each continues from the weights of the one before."""
        weights = None
        for C in sorted(strengths):
            weights = self.fit(C, weights)
            yield C, weights

    def fit(self, C: float, start: Tensor | None = None) -> Tensor:
        """The weights and, in the last row, the intercepts: (D + 1, K) in float64.

        Args:
            C: inverse strength of the penalty, as in scikit-learn.
            start: weights to continue from; None for zeros.
        """
        from scipy.optimize import minimize  # before the threads of its BLAS are limited

        with _few_threads(self.x.numel() * self.classes):
            return self._fit(minimize, C, start)

    def _fit(self, minimize: Callable[..., Any], C: float, start: Tensor | None) -> Tensor:
        images, width = self.x.shape
        penalty = 1 / (C * images)
        if self.loss == "logistic" and self.classes == 2:
            penalty *= 2  # two opposite vectors w / 2 and -w / 2 have half the penalty of one vector w
        # How much the loss of an image curves at zero weights, in the direction of one class.
        curvature = 2.0 if self.loss == "squared_hinge" else 1 / self.classes
        factor = None
        if self.covariance is not None:
            floor = max(penalty, 1e-5)  # what rounding needs
            factor = torch.linalg.cholesky(curvature * self.covariance + floor * torch.eye(width, dtype=torch.float64))
        weights = torch.zeros(width + 1, self.classes, dtype=torch.float64) if start is None else start.clone()
        if factor is not None:
            weights[:-1] = factor.T @ weights[:-1]

        def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
            weights = _decoded(torch.from_numpy(flat).view(width + 1, -1), factor)
            value, gradient = self._loss(weights)
            penalised = weights.clone()
            if self.loss == "logistic":
                penalised[-1] = 0  # the intercept is free
            value += penalty / 2 * float(penalised.square().sum())
            gradient += penalty * penalised
            if factor is not None:
                gradient[:-1] = torch.linalg.solve_triangular(factor, gradient[:-1], upper=False)
            return value, gradient.flatten().numpy()

        exact = self.x.dtype == torch.float64
        limits = {"maxiter": ITERATIONS, "maxfun": 2 * ITERATIONS}
        limits |= {"gtol": 1e-8, "ftol": 1e-14} if exact else {"gtol": 3e-5, "ftol": 1e-7}
        found = minimize(value_and_gradient, weights.flatten().numpy(), jac=True, method="L-BFGS-B", options=limits)
        return _decoded(torch.from_numpy(found.x).view(width + 1, -1), factor)

    def scores(self, weights: Tensor, features: Tensor) -> Tensor:
        """W x + b of other features (M, D), not standardised yet: (M, K) in chunks, so that memory grows with M only."""
        weights = weights.to(self.x)
        parts = features.to(self.x.device).split(ROWS_AT_A_TIME)
        return torch.cat([torch.addmm(weights[-1], self.scale(part), weights[:-1]) for part in parts])

    def _loss(self, weights: Tensor) -> tuple[float, Tensor]:
        """The mean loss, and its gradient (D + 1, K) in float64."""
        images = len(self.x)
        weights = weights.to(self.x)
        rows = min(ROWS_AT_A_TIME, max(1, SCORES_AT_A_TIME // self.classes))
        if self.x.device.type != "cpu":
            rows *= 64
        value, gradient = 0.0, torch.zeros_like(weights)
        for x, labels, targets in zip(
            self.x.split(rows), self.labels.split(rows), self.targets.split(rows), strict=True
        ):
            scores = torch.addmm(weights[-1], x, weights[:-1])  # (n, K)
            if self.loss == "logistic":
                logs = F.log_softmax(scores, dim=1)
                value = value - logs.gather(1, labels[:, None]).sum(dtype=torch.float64)
                slope = logs.exp_().sub_(targets)  # (n, K) derivative with respect to the scores
            else:
                sign = 2 * targets - 1
                missing = (1 - sign * scores).clamp_min_(0)
                value = value + missing.square().sum(dtype=torch.float64)
                slope = -2 * sign * missing
            gradient[:-1].addmm_(x.T, slope)
            gradient[-1] += slope.sum(dim=0)
        return float(value) / images, _on_cpu(gradient) / images


@contextlib.contextmanager
def _few_threads(work: int) -> Iterator[None]:
    """One thread for passes of up to ``ONE_THREAD`` multiplications, and for the BLAS of scipy, whose matrices are tiny.

    Passes of milliseconds gain little from more threads, and take ten times as long where others use the processor.
    """
    threads = torch.get_num_threads()
    try:
        if work <= ONE_THREAD:
            torch.set_num_threads(1)
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)


def _decoded(weights: Tensor, factor: Tensor | None) -> Tensor:
    """W of V = L^T W; the intercepts in the last row stay."""
    if factor is None:
        return weights.clone()
    return torch.cat([torch.linalg.solve_triangular(factor.T, weights[:-1], upper=True), weights[-1:]])


def _working(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()


def _on_cpu(values: Tensor) -> Tensor:
    return values.cpu().double()
