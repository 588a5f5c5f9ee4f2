"""A run: what one call of supervise() holds beside the networks, and how it is announced, stored and taken up again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from superself.basics.random import random_state, set_random_state
from superself.training.checkpoint import is_plain
from superself.training.interrupt import FinishStepOnSignal
from superself.training.precision import autocast, choose_precision
from superself.training.progress import Progress
from superself.training.record import RunRecord, describe_value

SAME = ("lr", "optimizer", "batch_size", "shuffle", "weight_decay", "lr_scheduler", "precision", "images")  # in one run


class Run:
    """Settings, optimiser, schedule, progress and record of one call of ``supervise()``.

    Args:
        settings: the arguments of ``supervise()`` by name, and "images": how many there are.
        optimizer: with ``state_dict`` and ``param_groups``.
        lr_scheduler: with ``state_dict``.
        steps: per epoch.
        chance: the loss that knowing nothing gives, or None.
        network: all that is trained; decides the precision.
        device: where it is.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        optimizer: Optimizer,
        lr_scheduler: Any,
        steps: int,
        chance: float | None,
        network: nn.Module,
        device: torch.device,
    ) -> None:
        self.settings, self.optimizer, self.lr_scheduler = settings, optimizer, lr_scheduler
        self.name, self.show, self.steps = str(settings["name"]), settings["progress"], steps
        self.progress = Progress(settings["epochs"], steps, chance, self.show)
        self.signals = FinishStepOnSignal()
        self.stored_step: int | None = None  # of the file that this run wrote last
        self.precision = choose_precision(settings["precision"], device, network)
        self.autocast = autocast(self.precision, device)

    @property
    def lr(self) -> float:
        """The learning rate of the optimiser's first group."""
        return self.optimizer.param_groups[0]["lr"]

    def state_dict(self, generator: torch.Generator) -> dict[str, Any]:
        """What a checkpoint holds of the run, the state of every random source included."""
        return {
            "settings": {**describe_value(self.settings), "precision": self.precision},
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "progress": self.progress.state_dict(),
            "random": random_state(generator),
        }

    def load_state_dict(self, stored: dict[str, Any], generator: torch.Generator) -> None:
        """Takes the run up where it was stored.

        Raises:
            ValueError: if the settings of then and now would not make one run; lists the differences.
        """
        then, now = stored["settings"], {**describe_value(self.settings), "precision": self.precision}
        differences = [f"{k}: {then[k]!r} then, {now[k]!r} now" for k in SAME if then[k] != now[k]]
        if differences:
            raise ValueError(
                f"The run {self.name!r} cannot be resumed with other settings ({'; '.join(differences)}); pass those of "
                "then, or pretrained=True to start a new run from its weights."
            )
        self.optimizer.load_state_dict(stored["optimizer"])
        self.lr_scheduler.load_state_dict(stored["lr_scheduler"])
        self.progress.load_state_dict(stored["progress"])
        set_random_state(stored["random"], generator)

    def open(self, facts: dict[str, Any], skipped: dict[str, str], step: int, epoch: int) -> None:
        """Starts NAME.yaml and NAME.csv, and says what is about to happen."""
        facts = {**facts, "precision": self.precision, "settings": self.settings, "resumed_at_step": step}
        self.record = RunRecord(self.name, facts, finished_epochs=epoch)
        self.record.skip(skipped)
        resumed = f", resumed after step {step}" if step else ""
        self.say(f"data: {facts['data']}")
        self.say(f"backbone: {facts['backbone']}; on {facts['device']} in {self.precision}")
        self.say(f"loss: {facts['loss']}")
        self.say(f"run: {self.settings['epochs']} epochs of {self.steps} steps, stored as {self.name}.pt{resumed}")

    def say(self, sentence: str) -> None:
        """Prints a line, unless the run is silent."""
        if self.show:
            print(sentence)

    def warn(self, sentence: str) -> None:
        """Prints what looks wrong, and notes it in NAME.yaml."""
        self.record.say(sentence)
        self.say(sentence)


def stored_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """The constructor's arguments that a checkpoint can hold: plain values, and neither the data nor the seed."""
    plain = {k: plainer(v) for k, v in arguments.items() if k not in ("dataset", "seed")}
    return {k: v for k, v in plain.items() if is_plain(v)}


def plainer(value: Any) -> Any:
    """The same value with lists in place of ranges, and Python's numbers in place of numpy's."""
    if isinstance(value, range):
        return list(value)
    if type(value) in (list, tuple):
        return type(value)(map(plainer, value))
    return value.item() if isinstance(value, np.generic) else value
