"""What a Run tells its trackers, without a run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

FACTS = {
    "algorithm": "RotateNetSupervisor",
    "arguments": {
        "rotations": [0, 90],
        "backbone": "resnet18",
        "predictor": None,
        "augment": {"name": "crop", "p": 0.5},
    },
    "settings": {"lr": 0.1, "batch_size": 8, "name": "store/run", "accumulate": 1, "clip": None, "num_workers": 4},
    "seed": 3,
    "notes": "with **less** colour",
}


def fake_run(step: int = 0, continues: bool = False, overwrite: bool = False, name: str = "store/run") -> Any:
    """A Run as far as trackers look at it."""
    noted = {"loss": 1.0, "accuracy": 0.5}
    return SimpleNamespace(
        name=name, step=step, continues=continues, chance_loss=1.386, settings=SimpleNamespace(overwrite=overwrite),
        metrics=SimpleNamespace(means=lambda: noted),
    )  # fmt: skip


def row_of(epoch: int, **values: Any) -> dict[str, Any]:
    """The row of an epoch whose loss is 1 / epoch."""
    return {
        "epoch": epoch, "step": 2, "loss": 1 / max(epoch, 1), "chance_loss": 1.386, "accuracy": 0.1 * epoch, "lr": 0.1,
        "images_per_second": 10.0, "waiting_share": 0.0, "seconds": 1.0, "seconds_left": 9.0, **values,
    }  # fmt: skip


def play(
    tracker: Any, run: Any, epochs: Any, state: str | None = "finished", before: Any = None, **values: Any
) -> None:
    """Tells a tracker of what was measured before, of epochs of two steps, and of the end unless ``state`` is None."""
    tracker.start({**FACTS, "run": run})
    if before:
        tracker.baseline(before)
    for epoch in epochs:
        row = row_of(epoch, **values)
        for _ in range(2):
            run.step += 1
            tracker.step(row)
        tracker.measure(row)
        tracker.epoch(row)
    if state is not None:
        tracker.end(state)
