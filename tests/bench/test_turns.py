"""Turns: which steps are timed, and that only one contestant runs at a time."""

import time
from contextlib import closing

import pytest
import torch

from bench import turns
from bench.turns import Contestant, Finished, Meter, Window, between_epochs, rates, steps_in, take_turns

CPU = torch.device("cpu")


class Orders:
    """The parent's end of the connection: gives one order after another, and keeps the answers."""

    def __init__(self, *orders):
        self.orders, self.answers = list(orders), []

    def recv(self):
        return self.orders.pop(0)

    def send(self, answer):
        self.answers.append(answer)


def windows_of(monkeypatch, orders, steps):
    """The windows of a loop whose steps are given as (seconds since the one before, last of its epoch)."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    connection = Orders(*orders, 0)
    meter = Meter(connection, CPU)
    with pytest.raises(Finished):
        for seconds, last in steps:
            clock[0] += seconds
            meter.tick(last)
    return connection.answers[:-1]


def test_the_first_step_is_not_timed(monkeypatch):
    assert windows_of(monkeypatch, [3], [(50, False), (2, False), (4, False)]) == [Window(2, 6.0)]


def test_all_steps_of_later_windows_are_timed(monkeypatch):
    steps = [(50, False), (2, False), (3, False), (1, False)]
    assert windows_of(monkeypatch, [2, 2], steps) == [Window(1, 2.0), Window(2, 4.0)]


def test_the_time_between_epochs_is_not_timed_but_reported(monkeypatch):
    steps = [(50, False), (2, False), (2, True), (9, False), (2, False)]
    windows = windows_of(monkeypatch, [5], steps)
    assert windows == [Window(3, 6.0, (9.0,))]
    assert between_epochs(windows) == 7.0  # 9 s minus a step of 2 s


def test_a_window_may_end_with_an_epoch(monkeypatch):
    steps = [(50, False), (2, True), (9, False), (2, False), (2, False)]
    assert windows_of(monkeypatch, [2, 3], steps) == [Window(1, 2.0), Window(2, 4.0, (9.0,))]


def test_rates_and_turns_are_those_worked_by_hand():
    assert rates([Window(4, 2.0), Window(1, 1.0)], batch_size=8) == [16.0, 8.0]
    assert between_epochs([Window(4, 2.0)]) is None and between_epochs([]) is None
    assert [steps_in(seconds, 2.0) for seconds in (-1.0, 1.0, 5.0)] == [1, 1, 2]


def counting(meter, path):
    """A contestant that writes the time of each of its steps into a file."""
    with open(path, "a") as file:
        while True:
            time.sleep(0.01)
            print(time.monotonic(), file=file, flush=True)
            meter.tick()


def failing(meter):
    raise ValueError("as it should")


def test_contestants_run_only_in_their_turn(tmp_path, monkeypatch):
    files = [tmp_path / "a", tmp_path / "b"]
    contestants = [Contestant(file.name, counting, (str(file),), CPU) for file in files]
    with closing(contestants[0]), closing(contestants[1]):
        for contestant in contestants:
            monkeypatch.setattr(contestant, "warm_up", lambda seconds: None)
            contestant.step_seconds = 0.01
        windows = take_turns(contestants, time.perf_counter() + 5, rounds=100)
        assert all(contestant.finish()["process"] > 1 for contestant in contestants)
    times = sorted((float(line), file.name) for file in files for line in file.read_text().split())
    changes = sum(before[1] != after[1] for before, after in zip(times, times[1:], strict=False))
    assert changes == 2 * (len(windows["a"]) + 1) - 1  # the first turn is for building


def test_a_contestant_that_fails_is_named(capfd):
    contestant = Contestant("lightly", failing, (), CPU)
    with closing(contestant), pytest.raises(RuntimeError, match="the process of lightly ended unexpectedly"):
        contestant.turn(1)
    assert "as it should" in capfd.readouterr().err


def test_peak_memory_includes_what_was_freed():
    torch.ones(2**26)  # 256 MiB
    assert turns.process_peak() > 256
    assert turns.peak_memory(CPU)["device"] is None
