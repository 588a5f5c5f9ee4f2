"""One line an epoch: loss beside chance, speed, waiting, learning rate, time left."""

from __future__ import annotations

import datetime
import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import colorama
import torch
from torch import Tensor
from tqdm import tqdm

REFRESH_SECONDS = 0.3  # how often the line is drawn; on an accelerator the only time the loss is fetched


class Progress:
    """Counts, times and prints an epoch; keeps the loss on the device and fetches it a few times a second.

    Args:
        epochs: of the whole run.
        steps: per epoch.
        chance: the loss that knowing nothing gives, or None.
        show: False prints nothing and still measures.
    """

    def __init__(self, epochs: int, steps: int, chance: float | None, show: bool = True) -> None:
        self.epochs, self.steps, self.chance, self.show = epochs, steps, chance, show
        self.bar = show and sys.stderr.isatty()
        self.loss_sum: Tensor | None = None
        self.count = 0
        if self.bar:
            colorama.just_fix_windows_console()

    def batches(self, loader: Iterable[Any], epoch: int) -> Iterator[Any]:
        """The loader's batches of epoch ``epoch`` (from 0), with the time spent waiting for them measured."""
        self.epoch, self.images, self.first_step = epoch, 0, self.count
        self.waited, self.began, self.drawn = 0.0, time.perf_counter(), 0.0
        self._line = tqdm(total=self.steps, initial=self.count, leave=False, file=sys.stderr) if self.bar else None
        asked = self.began
        try:
            for batch in loader:
                self.waited += time.perf_counter() - asked
                self.images += len(batch[0])
                yield batch
                asked = time.perf_counter()
        finally:
            if self._line is not None:
                self._line.close()

    def after_step(self, loss: Tensor, lr: float) -> bool:
        """Adds a step's loss; True when the line was drawn, which is when the loss has been fetched from its device."""
        loss = loss.detach().to(torch.float64 if loss.device.type == "cpu" else torch.float32)
        self.loss_sum = loss if self.loss_sum is None else self.loss_sum + loss
        self.count += 1
        now = time.perf_counter()
        if now - self.drawn < REFRESH_SECONDS:
            return False
        self.drawn = now
        if self._line is not None:
            self._line.n = self.count
            self._line.set_description_str(self._text(self.summary(lr)), refresh=True)
        return True

    def mean_loss(self) -> float:
        """Running mean of the epoch; fetches it from the device."""
        return math.nan if self.loss_sum is None else self.loss_sum.item() / self.count

    def summary(self, lr: float) -> dict[str, Any]:
        """The epoch's figures so far: a row of NAME.csv."""
        seconds = max(time.perf_counter() - self.began, 1e-9)
        return {
            "epoch": self.epoch + 1,
            "loss": self.mean_loss(),
            "chance_loss": self.chance,
            "images_per_second": self.images / seconds,
            "waiting_share": self.waited / seconds,
            "lr": lr,
            "seconds": seconds,
        }

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Prints the line of the epoch and starts the next mean."""
        if self.show:
            tqdm.write(self._text(row, final=True))
        self.restart()

    def restart(self) -> None:
        """Starts a new running mean."""
        self.loss_sum, self.count = None, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the running mean stands, so that an epoch that is resumed reports what an uninterrupted one does."""
        return {"loss_sum": self.loss_sum, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the running mean where ``state_dict`` left it."""
        self.loss_sum, self.count = state["loss_sum"], state["count"]

    def _text(self, row: dict[str, Any], final: bool = False) -> str:
        chance = "" if self.chance is None else f" (chance {self.chance:.3f})"
        steps_left = (self.epochs - self.epoch) * self.steps - self.count
        per_step = row["seconds"] / max(self.count - self.first_step, 1)
        left = datetime.timedelta(seconds=round(steps_left * per_step))
        parts = [
            f"epoch {row['epoch']}/{self.epochs}",
            f"loss {row['loss']:.4f}{chance}",
            f"{row['images_per_second']:.0f} images/s",
            f"{row['waiting_share']:.0%} waiting for data",
            f"lr {row['lr']:.2g}",
        ]
        if row.get("feature_std") is not None:
            parts.append(f"features spread {row['feature_std'] / row['feature_std_uniform']:.0%}")
        if row.get("knn") is not None:
            parts.append(f"kNN {row['knn']:.1%}")
        if not final or steps_left:
            parts.append(f"{left} left")
        text = " | ".join(parts)
        return f"{colorama.Fore.CYAN}{text}{colorama.Style.RESET_ALL}" if self.bar else text
