"""Running means of the loss and of everything noted next to it, kept on the device until they are shown."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

RESERVED = (
    "epoch",
    "step",
    "loss",
    "chance_loss",
    "lr",
    "images_per_second",
    "waiting_share",
    "seconds",
    "seconds_left",
    "knn",
    "skipped_steps",
    "rollbacks",
)


# Endings of the names of fractions, which are shown in per cent; a number may follow, as in "knn_2" and "linear_10%".
FRACTIONS = (
    *("accuracy", "top1", "top5", "filled", "spread"),
    *("knn", "kNN", "linear", "svm", "centroid", "ridge", "rotation"),
)


def is_fraction(name: str) -> bool:
    """Whether the values of this name are fractions, which are shown in per cent."""
    return re.sub(r"_\d+%?$", "", name).endswith(FRACTIONS)


def in_units(name: str, value: float, signed: bool = False) -> str:
    """A value for a table: a fraction as "26.2%", a difference of two as "+14.8" (points), others with four digits."""
    if is_fraction(name):
        return f"{100 * value:+.1f}" if signed else f"{value:.1%}"
    return f"{value:+.4g}" if signed else f"{value:.4g}"


def check_metric_name(name: str) -> None:
    """Raises a ValueError for the names of columns that every run has."""
    if name in RESERVED or name.startswith(("feature_", "embedding_")):
        raise ValueError(
            f"note({name!r}, ...): this name is a column of every run; pass another one, for example 'own_{name}'."
        )


class Metrics:
    """Means over the steps of an epoch. Adding a value never waits for an accelerator; ``means`` fetches all at once."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    @torch.no_grad()
    def add(self, name: str, value: Tensor | float) -> None:
        """Adds the value of one step: a number or a tensor, of which the mean is taken."""
        value = torch.as_tensor(value).detach()
        value = value.to(torch.float64 if value.device.type == "cpu" else torch.float32).mean()
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """The mean of every name so far, fetched from the device in one go."""
        if not self.sums:
            return {}
        if len({value.device for value in self.sums.values()}) > 1:
            values = [value.item() for value in self.sums.values()]
        else:
            values = torch.stack(list(self.sums.values())).tolist()
        return {name: value / self.counts[name] for name, value in zip(self.sums, values, strict=True)}

    def clear(self) -> None:
        """Starts the next epoch."""
        self.sums, self.counts = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, so that a resumed epoch reports what an uninterrupted one does."""
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from stored sums."""
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])
