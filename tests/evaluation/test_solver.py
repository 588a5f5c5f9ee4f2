"""The solver against scikit-learn, whose objectives it has."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from superself.evaluation import solver
from superself.evaluation.solver import LinearProblem, Scale


def correlated(images=120, classes=3, width=8, seed=0):
    """Features of which the directions differ a hundredfold in variance."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    mixed = torch.randn(width, width, generator=generator, dtype=torch.float64) * torch.logspace(0, -2, width)[:, None]
    x = torch.randn(images, width, generator=generator, dtype=torch.float64) + 0.8 * torch.eye(classes, width)[labels]
    return x @ mixed + 3, labels


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("C", [1e-3, 1.0])
def test_logistic_regression_has_the_coefficients_of_scikit_learn(classes, C):
    x, labels = correlated(classes=classes)
    problem = LinearProblem(x, labels)
    weights = problem.fit(C)
    expected = LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(problem.x.numpy(), labels.numpy())
    coefficients, intercept = torch.from_numpy(expected.coef_), torch.from_numpy(expected.intercept_)
    if classes == 2:  # scikit-learn has one weight vector: the difference
        found = (weights[:, 1] - weights[:, 0])[:, None]
    else:
        found, intercept = weights - weights.mean(dim=1, keepdim=True), intercept - intercept.mean()
    assert torch.allclose(found[:-1].T, coefficients, rtol=1e-3, atol=1e-5)
    assert torch.allclose(found[-1], intercept, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("C", [1e-3, 0.1])
def test_squared_hinge_has_the_coefficients_of_linear_svc(C):
    x, labels = correlated()
    problem = LinearProblem(x, labels, "squared_hinge")
    weights = problem.fit(C)
    expected = LinearSVC(C=C, tol=1e-10, max_iter=100_000, dual=False).fit(problem.x.numpy(), labels.numpy())
    assert torch.allclose(weights[:-1].T, torch.from_numpy(expected.coef_), rtol=1e-3, atol=1e-5)
    assert torch.allclose(weights[-1], torch.from_numpy(expected.intercept_), rtol=1e-3, atol=1e-5)


def test_float32_finds_the_minimum_of_float64():
    x, labels = correlated()
    exact, rough = LinearProblem(x, labels), LinearProblem(x.float(), labels)
    assert rough.x.dtype == torch.float32
    penalised = [objective(exact, weights) for weights in (exact.fit(1.0), rough.fit(1.0))]
    assert penalised[0] <= penalised[1] < penalised[0] + 1e-4


def objective(problem, weights):
    penalty = weights[:-1].square().sum() / 2 / len(problem.x)
    return problem._loss(weights)[0] + float(penalty)


def test_gradient_equals_that_of_autograd():
    x, labels = correlated()
    for loss in ("logistic", "squared_hinge"):
        problem = LinearProblem(x, labels, loss)
        weights = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        scores = problem.x @ weights[:-1] + weights[-1]
        if loss == "logistic":
            expected = torch.nn.functional.cross_entropy(scores, labels)
        else:
            expected = (1 - (2 * problem.targets - 1) * scores).clamp_min(0).square().sum(dim=1).mean()
        value, gradient = problem._loss(weights.detach())
        assert value == pytest.approx(expected.item())
        assert torch.allclose(gradient, torch.autograd.grad(expected, weights)[0])


def test_path_gives_the_solutions_of_separate_fits():
    x, labels = correlated()
    problem = LinearProblem(x, labels)
    strengths = [1.0, 1e-3, 1e-1]
    found = dict(problem.path(strengths))
    assert list(found) == [1e-3, 1e-1, 1.0]  # the strongest penalty first
    for C in strengths:
        assert torch.allclose(found[C], problem.fit(C), rtol=1e-3, atol=1e-5)


def test_conditioning_changes_the_number_of_passes_and_not_the_solution(monkeypatch):
    x, labels = correlated(images=400, width=24)
    passes = []
    monkeypatch.setattr(
        LinearProblem, "_loss", lambda self, weights, loss=LinearProblem._loss: passes.append(1) or loss(self, weights)
    )
    conditioned = LinearProblem(x, labels).fit(1.0)
    few = len(passes)
    monkeypatch.setattr(solver, "WIDEST", 1)
    plain = LinearProblem(x, labels).fit(1.0)
    assert torch.allclose(conditioned, plain, rtol=1e-3, atol=1e-4)
    assert 2 * few < len(passes) - few


def test_chunks_of_images_do_not_change_the_result(monkeypatch):
    x, labels = correlated()
    problem = LinearProblem(x, labels)
    weights = problem.fit(0.1)
    whole = problem._loss(weights), problem.scores(weights, x)
    monkeypatch.setattr(solver, "ROWS_AT_A_TIME", 7)
    assert problem._loss(weights)[0] == pytest.approx(whole[0][0])
    assert torch.allclose(problem._loss(weights)[1], whole[0][1])
    assert torch.allclose(problem.scores(weights, x), whole[1])


def test_constant_features_become_zero():
    x = torch.tensor([[0.1, 1.0], [0.1, 3.0]])
    assert torch.equal(Scale.of(x)(x), torch.tensor([[0.0, -1.0], [0.0, 1.0]]))


def test_deviations_may_come_from_other_features_and_means_do_not():
    x, population = torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([[0.0, 0.0], [8.0, 2.0]])
    assert torch.equal(Scale.of(x, population)(x), torch.tensor([[-0.25, 0.0], [0.25, 0.0]]))


def test_small_problems_use_one_thread_and_restore_the_number(monkeypatch):
    used = []
    monkeypatch.setattr(
        LinearProblem,
        "_loss",
        lambda self, weights, loss=LinearProblem._loss: used.append(torch.get_num_threads()) or loss(self, weights),
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        LinearProblem(*correlated()).fit(1.0)
        assert set(used) == {1} and torch.get_num_threads() == 2
        monkeypatch.setattr(solver, "ONE_THREAD", 10)
        used.clear()
        LinearProblem(*correlated()).fit(1.0)
        assert set(used) == {2}
    finally:
        torch.set_num_threads(before)
