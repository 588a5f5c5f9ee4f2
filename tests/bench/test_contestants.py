"""Contestants: every step is counted, and the limit makes no views."""

import pytest
import torch

from bench.contestants import EveryStep, Setting, limit, ours
from bench.turns import Finished
from superself import BYOLSupervisor, RotateNetSupervisor

from cases import TinyBackbone, tiny_images


class Meter:
    """Ends a loop after ``count`` steps."""

    def __init__(self, count):
        self.count, self.ticks = count, []

    def tick(self, last=False):
        self.ticks.append(last)
        if len(self.ticks) == self.count:
            raise Finished


def setting(tmp_path):
    torch.save(tiny_images(), tmp_path / "images.pt")
    return Setting("byol", str(tmp_path / "images.pt"), "squeezenet1_1", 4, "cpu")


def test_a_function_is_called_after_every_step_and_knows_the_last_of_an_epoch():
    calls = []
    supervisor = RotateNetSupervisor(tiny_images(), backbone=TinyBackbone())
    supervisor.supervise(epochs=2, batch_size=8, name="run", progress=False, trackers=[EveryStep(calls.append)])
    assert calls == [False, True, False, True]


def test_our_loop_runs_until_the_meter_ends_it(tmp_path):
    meter = Meter(6)
    with pytest.raises(Finished):
        ours(meter, setting(tmp_path))
    assert meter.ticks == [False, False, False, True, False, False]


def test_the_limit_trains_on_views_that_are_made_once(tmp_path, monkeypatch):
    made, given = [], []
    views, forward = BYOLSupervisor.views, BYOLSupervisor._forward
    monkeypatch.setattr(BYOLSupervisor, "views", lambda self, data: made.append(1) or views(self, data))
    monkeypatch.setattr(
        BYOLSupervisor, "_forward", lambda self, data: given.append(self.views(data)[0]) or forward(self, data)
    )
    meter = Meter(6)
    with pytest.raises(Finished):
        limit(meter, setting(tmp_path))
    assert len(made) == 1 and len(given) == 6 and all(view is given[0] for view in given)
    assert given[0].shape == (4, 3, 16, 16) and meter.ticks == [False] * 6  # no epoch ends
