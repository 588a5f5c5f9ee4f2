import pytest
import torch

from superself.training import Metrics


def test_means_are_over_the_steps_in_which_a_value_was_added():
    metrics = Metrics()
    for step, loss in enumerate([1.0, 2.0, 6.0]):
        metrics.add("loss", torch.tensor(loss))
        if step:
            metrics.add("rare", float(step))
    assert metrics.means() == {"loss": 3.0, "rare": 1.5}
    metrics.clear()
    assert metrics.means() == {}


def test_a_tensor_is_averaged_and_keeps_no_graph():
    metrics = Metrics()
    metrics.add("cosine", torch.tensor([0.0, 1.0], requires_grad=True))
    assert metrics.means() == {"cosine": 0.5} and not metrics.sums["cosine"].requires_grad


def test_state_continues_the_means():
    first, second = Metrics(), Metrics()
    for value in (1.0, 2.0):
        first.add("loss", value)
    second.load_state_dict(first.state_dict())
    second.add("loss", 6.0)
    assert second.means()["loss"] == pytest.approx(3.0) and first.means()["loss"] == 1.5
