"""W&B is replaced by a small module with what the tracker calls; one slow test uses the real library offline."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from superself.training import WandbTracker

from trackers_runs import FACTS, fake_run, play, row_of


class FakeRun:
    def __init__(self, options):
        self.options, self.id, self.dir = options, options["id"] or "abc123", "store/wandb/offline-run/files"
        self.logged, self.summary, self.exit_code = [], {}, None

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def runs(monkeypatch):
    """The runs that are opened."""
    opened = []

    def init(**options):
        opened.append(FakeRun(options))
        return opened[-1]

    module = SimpleNamespace(
        init=init, Settings=SimpleNamespace, Image=lambda path: ("image", path), login=lambda **options: False,
        __spec__=SimpleNamespace(name="wandb"),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
    return opened


def test_a_run_is_offline_and_has_parameters_values_figures_notes_and_warnings(runs):
    Image.new("RGB", (2, 2)).save("neighbours.png")
    tracker, run = WandbTracker(tags=["a"]), fake_run()
    tracker.start({**FACTS, "run": run})
    tracker.baseline({"knn": 0.2})
    assert runs[0].options["mode"] == "offline" and runs[0].options["notes"] == FACTS["notes"]
    assert runs[0].options["config"]["lr"] == 0.1 and runs[0].options["tags"] == ["a"]
    assert runs[0].options["project"] == "superself" and runs[0].options["reinit"] == "create_new"
    run.step = 2
    for write in (tracker.step, tracker.measure, tracker.epoch):
        write(row_of(1, knn=0.6))
    tracker.figure("neighbours", Path("neighbours.png"))
    tracker.figure("map", Path("map.pdf"))
    tracker.warn("one")
    tracker.warn("two")
    tracker.end("interrupted")
    steps = [step for step, _ in runs[0].logged]
    values = {name: value for _, row in runs[0].logged for name, value in row.items()}
    assert steps == [0, 2, 2, 2] and runs[0].logged[0][1]["evaluation/knn"] == 0.2
    assert values["loss/epoch"] == values["loss/step"] == 1.0 and values["loss/chance"] == 1.386
    assert values["figures/neighbours"] == ("image", "neighbours.png") and "figures/map" not in values
    assert runs[0].summary["warnings"] == ["one", "two"] and runs[0].summary["state"] == "interrupted"
    assert runs[0].summary["evaluation/knn"] == 0.6 and runs[0].exit_code == 1


def test_errors_of_the_library_are_not_reported_to_its_makers(runs, monkeypatch):
    import os

    play(WandbTracker(), fake_run(), [1])
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    monkeypatch.delenv("WANDB_ERROR_REPORTING")


def test_online_without_an_account_is_an_error_and_not_a_prompt(runs):
    with pytest.raises(RuntimeError, match='run "wandb login" first'):
        play(WandbTracker(mode="online"), fake_run(), [])
    assert runs == []
    with pytest.raises(ValueError, match="mode='cloud' is unknown"):
        WandbTracker(mode="cloud")


def test_a_resumed_run_keeps_its_id(runs):
    first = WandbTracker()
    play(first, fake_run(), [1], "interrupted")
    resumed = WandbTracker()
    resumed.load_state_dict(first.state_dict())
    play(resumed, fake_run(step=2, continues=True), [2])
    assert runs[1].options["id"] == "abc123" and runs[1].exit_code == 0


def test_values_within_epochs_can_be_left_out(runs):
    play(WandbTracker(every_step=False), fake_run(), [1])
    assert [step for step, _ in runs[0].logged] == [2]


@pytest.mark.slow  # it starts a service process
def test_the_real_library_writes_offline():
    wandb = pytest.importorskip("wandb")
    Image.new("RGB", (2, 2)).save("neighbours.png")
    tracker, run = WandbTracker(), fake_run()
    play(tracker, run, [1], None)
    tracker.figure("neighbours", Path("neighbours.png"))
    tracker.warn("it looks wrong")
    tracker.end("finished")
    wandb.teardown()  # as at the end of the process: the service writes what it has, and ends
    (folder,) = Path("store/wandb").glob("offline-run-*")
    assert tracker.folder.resolve() == folder.resolve() and list(folder.glob("*.wandb"))
    assert b"with **less** colour" in next(folder.glob("*.wandb")).read_bytes()
