import math

import pytest
import torch

from superself.training import Progress


def run_epoch(progress, losses, epoch=0):
    for _, loss in zip(progress.batches([(torch.zeros(8),)] * len(losses), epoch), losses, strict=True):
        progress.after_step(torch.tensor(loss), lr=0.1)


def test_mean_counts_every_step_and_starts_anew():
    progress = Progress(epochs=2, steps=3, chance=math.log(4), show=False)
    run_epoch(progress, [1.0, 2.0, 6.0])
    row = progress.summary(0.1)
    assert row["loss"] == pytest.approx(3.0) and row["epoch"] == 1 and row["lr"] == 0.1
    assert row["images_per_second"] > 0 and 0 <= row["waiting_share"] <= 1
    progress.end_epoch(row)
    run_epoch(progress, [5.0], epoch=1)
    assert progress.mean_loss() == 5.0


def test_waiting_is_the_time_the_loader_takes():
    import time

    def slow():
        for _ in range(3):
            time.sleep(0.03)
            yield (torch.zeros(4),)

    progress = Progress(epochs=1, steps=3, chance=None, show=False)
    for _ in progress.batches(slow(), 0):
        progress.after_step(torch.tensor(1.0), lr=0.1)
    assert progress.summary(0.1)["waiting_share"] > 0.5


def test_state_takes_up_the_mean():
    first = Progress(epochs=1, steps=4, chance=None, show=False)
    run_epoch(first, [1.0, 2.0])
    second = Progress(epochs=1, steps=4, chance=None, show=False)
    second.load_state_dict(first.state_dict())
    run_epoch(second, [3.0, 6.0])
    assert second.mean_loss() == pytest.approx(3.0)


def test_line_is_plain_without_a_terminal_and_tells_the_time_left(capsys):
    progress = Progress(epochs=4, steps=2, chance=1.386)
    run_epoch(progress, [1.0, 0.5])
    progress.end_epoch({**progress.summary(0.001), "seconds": 20.0, "knn": 0.5})
    line = capsys.readouterr().out
    assert line.startswith("epoch 1/4 | loss 0.7500 (chance 1.386) | ") and "\x1b" not in line
    assert "kNN 50.0%" in line and "0:01:00 left" in line
