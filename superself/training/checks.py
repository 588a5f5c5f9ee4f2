"""What is checked before the first step, so that it does not fail after hours."""

from __future__ import annotations

from typing import Any

from superself.training.trackers import Tracker

PARTS = {
    "optimizer": ("step", "zero_grad", "param_groups", "state_dict", "load_state_dict"),
    "lr_scheduler": ("step", "state_dict", "load_state_dict"),
}
OF_TRACKERS = [name for name in vars(Tracker) if not name.startswith("_")]


def check_parts(loader: Any, optimizer: Any, lr_scheduler: Any) -> None:
    """Raises a TypeError if what ``_init_data_optimizer`` returned lacks what a run calls."""
    for name, part in (("optimizer", optimizer), ("lr_scheduler", lr_scheduler)):
        missing = [method for method in PARTS[name] if not hasattr(part, method)]
        if missing:
            raise TypeError(
                f"_init_data_optimizer returned {_described(part)} as {name}, which has no {', '.join(missing)}; return "
                "(loader, optimizer, lr_scheduler), for example with the last two from super()._init_data_optimizer()."
            )
    if not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
        raise TypeError(
            f"_init_data_optimizer returned {_described(loader)} as loader, which cannot be iterated over; return for example a "
            "torch DataLoader."
        )


def check_tracker(tracker: Any) -> None:
    """Raises a TypeError if a tracker lacks a method that a run calls."""
    missing = [name for name in OF_TRACKERS if not callable(getattr(tracker, name, None))]
    if missing:
        raise TypeError(
            f"trackers has {_described(tracker)}, which has no {', '.join(missing)}; make it a subclass of superself.Tracker."
        )


def _described(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
