"""The progress line: at most 100 columns, a bar in a terminal, plain lines in a pipe or a notebook."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import colorama
from tqdm import tqdm

from superself.basics.output import BROKEN_OUTPUT, is_terminal, print_line
from superself.training.metrics import RESERVED, in_units, is_fraction
from superself.training.trackers.tracker import Tracker

WIDTH = 100  # columns
FIRST_LINE = 2.0  # seconds until the first line where there is no bar; the pause then doubles up to LONGEST_PAUSE
LONGEST_PAUSE = 60.0
MIN_WAITING_SHARE = 0.05  # of the time; shown from there on


class Progress(Tracker):
    """Prints what is about to run, then one line per epoch, and in between the line of the epoch so far."""

    def __init__(self) -> None:
        self.bar = is_terminal(sys.stderr)
        self._line: tqdm | None = None
        if self.bar:
            colorama.just_fix_windows_console()

    def start(self, facts: dict[str, Any]) -> None:
        """Prints data, backbone, loss and length of the run."""
        self.epochs, self.steps, self._run = facts["epochs"], facts["steps_per_epoch"], facts.get("run")
        for key in ("data", "backbone", "loss", "plan"):
            self._print(f"{key}: {facts[key]}")
        self._pause = FIRST_LINE
        self._next = time.perf_counter() + self._pause

    def baseline(self, row: dict[str, Any]) -> None:
        """Prints the main value of each evaluator."""
        shown = [f"{display_name(name)} {in_units(name, row[name])}" for name in self._run.main_values if name in row]
        self._print(f"before training: {', '.join(shown)}")

    def step(self, row: dict[str, Any]) -> None:
        """Draws the bar, or prints a line from time to time."""
        if not self.bar:
            if time.perf_counter() >= self._next:
                self._pause = min(2 * self._pause, LONGEST_PAUSE)
                self._next = time.perf_counter() + self._pause
                done = row["step"] / self.steps
                self._print(self.text(row, done=f" {done:.0%}"))
            return
        try:
            self._draw(row)
        except BROKEN_OUTPUT:  # the terminal has gone
            self._give_up_bar()

    def _draw(self, row: dict[str, Any]) -> None:
        if self._line is None:
            form = "{desc}{bar:12} {postfix}"
            self._line = tqdm(total=self.steps, leave=False, file=sys.stderr, ncols=WIDTH, bar_format=form)
        self._line.n = row["step"]
        self._line.set_description_str(f"epoch {row['epoch']}/{self.epochs} ", refresh=False)
        self._line.set_postfix_str(self.text(row).partition(" | ")[2][: WIDTH - 32], refresh=True)

    def epoch(self, row: dict[str, Any]) -> None:
        """Prints the line of the epoch."""
        self._close()
        text = self.text(row)
        self._print(f"{colorama.Fore.CYAN}{text}{colorama.Style.RESET_ALL}" if self.bar else text)

    def warn(self, text: str) -> None:
        """Prints a sentence on what looks wrong."""
        self._print(text)

    def end(self, state: str) -> None:
        """Clears the bar."""
        self._close()

    def text(self, row: dict[str, Any], done: str = "") -> str:
        """The line for a row: loss and chance level first, then as much as fits."""
        chance = "" if row.get("chance_loss") is None else f" (chance {row['chance_loss']:.3f})"
        parts = [f"epoch {row['epoch']}/{self.epochs}{done}", f"loss {row['loss']:.3f}{chance}"]
        mains, hidden = (getattr(self._run, name, ()) for name in ("main_values", "detailed_values"))
        shown = shown_values({name: value for name, value in row.items() if name not in hidden}, mains)
        values = [f"{display_name(name)} {format_value(name, value)}" for name, value in shown]
        speed = [f"{row['images_per_second']:.0f} img/s"] if row["images_per_second"] else []
        if row["waiting_share"] >= MIN_WAITING_SHARE:
            speed.append(f"{row['waiting_share']:.0%} waiting for data")
        left = [f"{duration(row['seconds_left'])} left"] if row["seconds_left"] > 0 else []
        optional = [*values[:4], *speed, *values[4:]]  # the last ones give way first
        while optional and len(" | ".join([*parts, *optional, *left])) > WIDTH:
            optional.pop()
        return " | ".join([*parts, *optional, *left])

    def _print(self, text: str) -> None:
        """Prints a line above the bar, which the next step draws again."""
        if self._line is not None:
            try:
                self._line.clear()
            except BROKEN_OUTPUT:
                self._give_up_bar()
        print_line(text)

    def _close(self) -> None:
        if self._line is not None:
            try:
                self._line.close()
            except BROKEN_OUTPUT:
                self._give_up_bar()
            self._line = None

    def _give_up_bar(self) -> None:
        if self._line is not None:
            self._line.disable = True  # or it fails again when it is deleted
        self.bar, self._line = False, None


def shown_values(row: dict[str, Any], mains: Sequence[str] = ()) -> list[tuple[str, float]]:
    """What is worth a place in the line besides loss and speed, the most telling first.

    Args:
        row: of an epoch, or of a part of it.
        mains: names of the evaluators' main values, which come first.
    """
    spread = [
        (label, row[f"{kind}_std"] / row[f"{kind}_std_uniform"])
        for kind, label in (("feature", "spread"), ("embedding", "embedding spread"))
        if row.get(f"{kind}_std") is not None and row.get(f"{kind}_std_uniform")
    ]
    measured = ("feature_", "embedding_")
    noted = [(k, v) for k, v in row.items() if k not in (*RESERVED, *mains) and not k.startswith(measured)]
    mains = [(name, row[name]) for name in dict.fromkeys(("knn", *mains)) if row.get(name) is not None]
    spread.sort(key=lambda part: part[1])  # what has nearly collapsed comes first
    return [*mains, *noted[:1], *spread, *noted[1:]]


def display_name(name: str) -> str:
    """How the name of a value is written in the line."""
    return name.replace("knn", "kNN").replace("_", " ")


def duration(seconds: float) -> str:
    """A length of time in the unit that suits it: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def format_value(name: str, value: float) -> str:
    """Fractions, recognised by their names, in per cent; other numbers with three digits."""
    return f"{value:.0%}" if is_fraction(name) else f"{value:.3g}"
