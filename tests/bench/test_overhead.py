"""The stopwatch of bench.overhead, and the shares that are made of it."""

import time

import pytest
import torch

from bench.overhead import Stopwatch, measure_training, training_rows
from superself.data import photos


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_time_of_an_inner_part_is_not_counted_for_the_outer_one(clock):
    watch = Stopwatch(torch.device("cpu"))

    def wait(seconds):
        clock[0] += seconds

    def outer():
        wait(1)
        watch.timed("inner", wait)(4)
        watch.timed("inner", wait)(5)

    watch.timed("outer", outer)()
    assert watch.seconds == {"outer": 1, "inner": 9}
    assert watch.calls == {"outer": 1, "inner": 2}


def test_what_comes_once_per_epoch_weighs_less_in_a_longer_epoch():
    watch = Stopwatch(torch.device("cpu"))
    watch.seconds.update(algorithm=6.0, saving=2.0)
    rows = {row[0]: row for row in training_rows(watch, epochs=2, images=5_000)}
    assert rows["saving"][3] == pytest.approx(25)  # of 8 s
    assert rows["saving"][4] == pytest.approx(100 * 1 / (3 * 10 + 1))  # 1 s per epoch, and 3 s for 5,000 images
    assert rows["all but algorithm and loading"][3] == pytest.approx(25)


def test_the_time_of_a_run_is_divided_among_its_parts():
    images = photos("train", 32, 64)
    rows = measure_training("rotatenet", "mobilenet_v3_small", images, 32, 1, torch.device("cpu"))
    parts = {row[0]: row[1] for row in rows}
    assert {"algorithm", "loading", "saving", "monitor", "time estimate", "progress and record"} <= parts.keys()
    assert all(seconds > 0 for seconds in parts.values()) and max(parts, key=parts.get) == "algorithm"
