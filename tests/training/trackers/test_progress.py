import errno
import io
import sys

import pytest

from superself.training import Progress
from superself.training.trackers import progress as module

ROW = {
    "epoch": 1,
    "step": 3,
    "loss": 0.75,
    "chance_loss": 1.386,
    "images_per_second": 1403.2,
    "waiting_share": 0.01,
    "lr": 1e-3,
    "seconds": 20.0,
    "seconds_left": 250.0,
}
FACTS = {"epochs": 50, "steps_per_epoch": 10, "data": "d", "backbone": "b", "loss": "l", "plan": "p"}


def started():
    progress = Progress()
    progress.start(dict(FACTS))
    return progress


def test_line_is_plain_without_a_terminal_and_tells_loss_chance_speed_and_time_left(capsys):
    started().epoch(ROW)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["data: d", "backbone: b", "loss: l", "plan: p"]
    assert lines[4] == "epoch 1/50 | loss 0.750 (chance 1.386) | 1403 img/s | 4 min left"


def test_noted_values_spread_and_probe_are_shown_in_plain_terms():
    row = {
        **ROW,
        "accuracy": 0.684,
        "feature_std": 0.031,
        "feature_std_uniform": 0.044,
        "feature_rank": 3.0,
    }
    text = started().text(row)
    assert "kNN 50%" in started().text({**row, "knn": 0.5}) and "| spread 70%" in text and "accuracy 68%" in text
    assert "rank" not in text and "0.031" not in text
    assert "discriminator loss 0.693" in started().text({**ROW, "discriminator_loss": 0.693})


def test_line_never_exceeds_100_columns_and_drops_the_last_values_first():
    row = {**ROW, **{f"some_long_metric_{i}": i + 1.5 for i in range(9)}, "chance_loss": None}
    text = started().text(row)
    assert len(text) <= 100 and "some long metric 0 1.5" in text and "metric 8" not in text and text.endswith("left")


def test_waiting_is_only_shown_when_it_matters():
    progress = started()
    assert "waiting" not in progress.text(ROW)
    assert "20% waiting for data" in progress.text({**ROW, "waiting_share": 0.2})


def test_something_is_printed_within_seconds_where_there_is_no_bar(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    progress = started()
    capsys.readouterr()
    printed = []
    for second in range(200):
        now[0] = float(second)
        progress.step({**ROW, "step": second})
        if capsys.readouterr().out:
            printed.append(second)
    assert printed[0] <= 3 and 4 <= len(printed) <= 9  # the pause between two lines grows


class BrokenTerminal(io.StringIO):
    """A terminal that goes away after some writes."""

    encoding = "utf-8"

    def __init__(self, writes):
        super().__init__()
        self.left = writes

    def isatty(self):
        return True

    def write(self, text):
        self.left -= 1
        if self.left < 0:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")  # tqdm itself handles EIO
        return super().write(text)


@pytest.mark.parametrize("writes", [0, 1, 2, 3, 5, 8])
def test_a_bar_on_a_terminal_that_goes_away_is_given_up_and_lines_go_on(writes, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", BrokenTerminal(writes))
    progress = started()
    assert progress.bar
    for step in range(4):
        progress.step({**ROW, "step": step})
    progress.epoch(ROW)
    progress.warn("it looks wrong")
    progress.end("finished")
    assert not progress.bar or writes == 8
    out = capsys.readouterr().out
    assert "epoch 1/50 | loss 0.750" in out and "it looks wrong" in out


def test_a_closed_or_missing_stderr_is_not_a_terminal(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None):
        monkeypatch.setattr(sys, "stderr", stream)
        assert not started().bar


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (40, "40 s"), (720, "12 min"), (12600, "3.5 h")])
def test_durations_are_short(seconds, text):
    assert module.duration(seconds) == text
