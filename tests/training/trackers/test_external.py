import errno
import importlib.util

import pytest

from superself.training import MLflowTracker, Settings, TensorBoardTracker, WandbTracker
from superself.training.trackers import external
from superself.training.trackers.external import (
    ExternalTracker,
    grouped,
    grouped_within_epoch,
    hyper_parameters,
    parameters,
)

from trackers_runs import FACTS, fake_run, play, row_of


class Writes(ExternalTracker):
    library = "json"

    def __init__(self):
        super().__init__()
        self.written, self.broken, self.opened = [], False, 0

    def step(self, row):
        self._begin()
        self._send(lambda: self._write_values(grouped_within_epoch(row), self.run.step, row["epoch"]), keep=False)

    def _open(self):
        self.opened += 1
        self.written.append("opened")

    def _reopen(self):
        self.written.append("reopened")

    def _write_values(self, values, step, epoch):
        if self.broken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.written.append(("epoch", epoch) if "loss/epoch" in values else ("step", step))

    def _close(self, state):
        if self.broken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.written.append(state)


@pytest.mark.parametrize("cls", [TensorBoardTracker, MLflowTracker, WandbTracker])
def test_a_missing_library_is_an_error_that_names_the_extra(cls, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf'pip install "superself\[{cls.library}\]"'):
        cls()
    with pytest.raises(ImportError, match=cls.library):
        Settings(trackers=[cls.library])


def test_names_of_libraries_stand_for_trackers():
    pytest.importorskip("tensorboard")
    assert [type(tracker) for tracker in Settings(trackers=["tensorboard"]).trackers] == [TensorBoardTracker]
    with pytest.raises(ValueError, match="trackers='tensorbored' is unknown; pass 'mlflow', 'tensorboard' or 'wandb'"):
        Settings(trackers=["tensorbored"])


def test_values_are_grouped_by_where_they_come_from():
    row = row_of(2, knn=0.7, alignment=0.2, feature_std=0.03, feature_std_uniform=0.06, feature_rank=5.0)
    assert grouped(row, {"accuracy"}) == {
        "loss/epoch": 0.5,
        "metrics/accuracy": 0.2,
        "evaluation/knn": 0.7,
        "evaluation/alignment": 0.2,
        "features/feature_std": 0.03,
        "features/feature_rank": 5.0,
        "features/feature_spread": 0.5,
        "optimizer/lr": 0.1,
        "speed/images_per_second": 10.0,
        "speed/waiting_share": 0.0,
        "speed/seconds": 1.0,
    }
    assert grouped_within_epoch(row_of(2)) == {"loss/step": 0.5, "metrics/accuracy/step": 0.2, "optimizer/lr": 0.1}


def test_parameters_are_flat_and_plain_and_hyper_parameters_leave_out_where_the_run_is_kept():
    assert parameters(FACTS) == {
        **{"algorithm": "RotateNetSupervisor", "seed": 3, "lr": 0.1, "batch_size": 8, "name": "store/run"},
        **{"accumulate": 1, "num_workers": 4, "rotations": "[0, 90]", "backbone": "resnet18"},
        **{"augment.name": "crop", "augment.p": 0.5},
    }
    left_out = {"name", "num_workers", "accumulate"}
    assert hyper_parameters(FACTS) == {n: v for n, v in parameters(FACTS).items() if n not in left_out}
    both = {"settings": {"lr": 1}, "arguments": {"lr": 2}}
    assert parameters(both) == {"lr": 1, "arguments.lr": 2}


def test_nothing_is_opened_before_the_first_step_and_what_was_observed_before_is_written_then():
    tracker, run = Writes(), fake_run()
    tracker.start({**FACTS, "run": run})
    tracker.baseline({"loss": 1.0, "knn": 0.2})
    assert tracker.opened == 0 and tracker.written == []
    tracker.step(row_of(1))
    assert tracker.opened == 1 and tracker.written == ["opened", ("epoch", 0), ("step", 0)]
    resumed = Writes()
    resumed.start({**FACTS, "run": fake_run(step=2, continues=True)})
    resumed.baseline({"loss": 1.0})
    resumed.step(row_of(2))
    assert resumed.written == ["opened", ("step", 2)]


def test_a_run_without_a_step_leaves_no_trace():
    tracker = Writes()
    play(tracker, fake_run(), [], "stopped by an error")
    assert tracker.opened == 0 and tracker.written == []


def test_an_error_is_reported_once_and_what_failed_is_written_later(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(external.time, "monotonic", lambda: now[0])
    tracker, run = Writes(), fake_run()
    play(tracker, run, [1], None)
    tracker.broken = True
    with pytest.warns(
        UserWarning, match="Writes could not write .No space left on device.; training continues"
    ) as seen:
        for epoch in (2, 3):
            now[0] += 1000
            tracker.step(row_of(epoch))
            tracker.epoch(row_of(epoch))
    assert len(seen) == 1
    tracker.broken, tracker.written = False, []
    now[0] += 1.0
    tracker.epoch(row_of(4))
    assert tracker.written == []  # too early for the next attempt
    now[0] += external.LONGEST_PAUSE
    tracker.epoch(row_of(5))
    assert tracker.written == ["reopened", ("epoch", 2), ("epoch", 3), ("epoch", 4), ("epoch", 5)]


def test_the_end_is_tried_at_once_and_reports_what_is_missing():
    tracker, run = Writes(), fake_run()
    play(tracker, run, [1], None)
    tracker.broken = True
    with pytest.warns(UserWarning, match="could not write"):
        tracker.epoch(row_of(2))
    with pytest.warns(UserWarning, match="Writes: 2 observations could not be written and are missing"):
        tracker.end("finished")


def test_what_failed_is_tried_again_at_the_end_without_waiting(recwarn):
    tracker = Writes()
    play(tracker, fake_run(), [1], None)
    tracker.broken = True
    tracker.epoch(row_of(2))
    tracker.broken, tracker.written = False, []
    tracker.end("interrupted")
    assert tracker.written == ["reopened", ("epoch", 2), "interrupted"] and len(recwarn) == 1


def test_the_latest_values_are_part_of_the_checkpoint_of_their_epoch():
    tracker = Writes()
    tracker.start({**FACTS, "run": fake_run()})
    tracker.measure(row_of(1, knn=0.5))
    state = tracker.state_dict()
    assert state["last"]["evaluation/knn"] == 0.5
    other = Writes()
    other.load_state_dict(state)
    assert other.last == state["last"]
