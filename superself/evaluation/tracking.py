"""EvaluationTracker: measures evaluators before, during and after a run."""

from __future__ import annotations

import math
from typing import Any

from superself.evaluation.evaluating import Panel, check_evaluators
from superself.evaluation.evaluator import Evaluator
from superself.evaluation.extraction import NonFiniteFeatures
from superself.evaluation.held_out import HeldOutLoss
from superself.evaluation.knn import KNN
from superself.evaluation.of_supervisor import subject_of, undisturbed
from superself.evaluation.subject import Subject
from superself.evaluation.twin import before_training
from superself.training.files import copy_completely, run_path
from superself.training.metrics import RESERVED, in_units
from superself.training.trackers import Tracker
from superself.training.trackers.progress import display_name


class EvaluationTracker(Tracker):
    """Runs the evaluators of a run, and keeps what they measured before its first step.

    Every new evaluator measures once before the first step, so what cannot work fails there. Batch norms that have no
    statistics yet get those of training images for this measurement, because with mean 0 and variance 1 a random network
    seems worse than it is. An evaluator that fails later is reported once; its values are NaN then. The state of the run is
    as without evaluators.

    Args:
        supervisor: whose exported backbone is measured.
    """

    def __init__(self, supervisor: Any) -> None:
        self.supervisor = supervisor
        self.initial: dict[str, float] = {}  # the first value of each name
        self.since: dict[str, int] = {}  # after how many epochs the first value was measured
        self.names: dict[str, list[str]] = {}  # of each evaluator's values, by its label
        self.best: dict[str, Any] = {}  # "name", "epoch" and "value" of NAME.best.pt
        self.better: dict[str, Any] = {}  # of an epoch that is better, until its checkpoint is copied
        self.failed: list[str] = []  # labels of the evaluators that were reported
        self._last: dict[str, float] = {}
        self._figures: list[tuple[str, Any]] = []
        self._warnings: list[str] = []

    def start(self, facts: dict[str, Any]) -> None:
        """Opens the evaluators; those that are new to this run measure what the weights are worth before the next step."""
        self.run = facts["run"]
        supervisor, settings = self.supervisor, self.run.settings
        evaluators, given = _asked_for(settings)
        self.panel = Panel(evaluators, given)
        self.subject = subject_of(supervisor, self.run.supervisor.seed)
        self.panel.names = {label: names for label, names in self.names.items() if label in self.panel.evaluators}
        with undisturbed(supervisor, self.subject.seed):
            self.panel.open(self.subject)
            new = [label for label in self.panel.evaluators if label not in self.panel.names]
            values = self.panel.measure(self._first_subject(), new) if new else {}
        self.subject.forget()
        _check_names(values)
        self._note_new(values, self.run.epoch)
        self._check_best(settings.keep_best)
        if self.run.step == 0 and values:
            self.run.initial_row = {"epoch": 0, **values, **self.run.initial_features}
        elif self.better.get("epoch") == self.run.epoch and self.run.step == self.run.epoch_began:
            self._keep_best()  # the file was stored before its copy

    def measure(self, row: dict[str, Any]) -> dict[str, float]:
        """The values that are due after this epoch."""
        epoch = int(row["epoch"])
        is_last = epoch >= self.run.settings.epochs
        due = [label for label, e in self.panel.evaluators.items() if epoch % e.every == 0 or is_last]
        if not due:
            return {}
        self.subject.backbone = self.supervisor.exported_backbone
        values: dict[str, float] = {}
        with undisturbed(self.supervisor, self.subject.seed):
            for label in due:
                values |= self._values(label, epoch)
        self.subject.forget()
        self._last = values
        self._note_new(values, epoch)
        self._compare_with_best(values, epoch)
        return values

    def epoch(self, row: dict[str, Any]) -> None:
        """Announces pictures, reports what failed, and keeps the best checkpoint, once the epoch is stored."""
        for text in self._warnings:
            self.run.warn(text)
        for name, path in self._figures:
            self.run.figure(name, path)
        self._warnings, self._figures = [], []
        if self.better.get("epoch") != row["epoch"]:
            return
        if self.run.saved_step == self.run.step:
            self._keep_best()
        else:
            self._warn_lost("its checkpoint could not be saved")

    def end(self, state: str) -> None:
        """Prints what has changed since before training."""
        mains = [name for names in self.panel.names.values() for name in names[:1] if name in self._last]
        if state != "finished" or not mains:
            return
        parts = []
        for name in mains:
            text = f"{display_name(name)} {in_units(name, self._last[name])}"
            if self.since[name] < self.run.epoch and not math.isnan(self.initial[name]):
                since = f" since epoch {self.since[name]}" if self.since[name] else ""
                text += f" ({in_units(name, self._last[name] - self.initial[name], signed=True)}{since})"
            parts.append(text)
        self.run.print(f"after training: {', '.join(parts)}")

    def state_dict(self) -> dict[str, Any]:
        """The first values, the names of the values, the best epoch, and what has been reported."""
        kept = ("initial", "since", "names", "best", "better", "failed")
        return {name: type(getattr(self, name))(getattr(self, name)) for name in kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state_dict``."""
        for name, value in state.items():
            setattr(self, name, value)

    def _note_new(self, values: dict[str, float], epoch: int) -> None:
        """Keeps the first value of every name, and which names each evaluator has: an evaluator may add some later."""
        self.names |= self.panel.names
        for name, value in values.items():
            self.initial.setdefault(name, value)
            self.since.setdefault(name, epoch)
        self.run.main_values = [name for names in self.panel.names.values() for name in names[:1]]
        self.run.detailed_values = {name for names in self.panel.names.values() for name in names[1:]}

    def _first_subject(self) -> Subject:
        """The subject before training, with the statistics of training images where batch norms have none."""
        subject = self.subject
        return subject.with_backbone(before_training(subject.backbone, subject.images, subject.preprocessing))

    def _values(self, label: str, epoch: int) -> dict[str, float]:
        """The values of one evaluator, or NaN if it fails, and its figure."""
        try:
            found = self.panel.values(label, self.subject)
        except NonFiniteFeatures:  # the monitor says so
            return dict.fromkeys(self.panel.names[label], math.nan)
        except Exception as error:
            self._report(label, epoch, "its values of this epoch are NaN", error)
            return dict.fromkeys(self.panel.names[label], math.nan)
        try:
            path = self.panel.draw(label, self.subject, run_path(self.run.name, f".{label}.png"))
        except Exception as error:
            self._report(label, epoch, "its picture is missing", error)
        else:
            self._figures += [] if path is None else [(label, path)]
        return found

    def _report(self, label: str, epoch: int, consequence: str, error: Exception) -> None:
        if label not in self.failed:
            self.failed.append(label)
            self._warnings.append(
                f"The evaluator {self.panel.given[label]} failed after epoch {epoch} ({type(error).__name__}: {error}); "
                f"{consequence}, training continues, and this is not reported again."
            )

    # ---- the best checkpoint -----------------------------------------------------------------------------------------

    def _check_best(self, name: str | None) -> None:
        """Refuses a name that is not the main value of an evaluator with a direction."""
        if name is None:
            return
        evaluators, named = self.panel.evaluators, self.panel.names.items()
        directions = {names[0]: evaluators[label].higher_is_better for label, names in named if names}
        usable = [main for main, direction in directions.items() if direction is not None]
        if name not in usable:
            raise ValueError(
                f"keep_best={name!r} is not the main value of an evaluator of this run that says what is better; pass one of "
                f"{', '.join(map(repr, usable)) or 'them after adding evaluators= or probe='}."
            )
        self._sign = 1 if directions[name] else -1
        if self.best.get("name") != name:
            self.best = {}
        if self.better.get("name") != name:
            self.better = {}

    def _compare_with_best(self, values: dict[str, float], epoch: int) -> None:
        name = self.run.settings.keep_best
        value = values.get(name, math.nan)
        if math.isfinite(value) and (not self.best or self._sign * (value - self.best["value"]) > 0):
            self.better = {"name": name, "epoch": epoch, "value": value}

    def _keep_best(self) -> None:
        """Copies NAME.pt to NAME.best.pt; an epoch that cannot be copied is not the best, so that a later one can be."""
        try:
            copy_completely(run_path(self.run.name, ".pt"), run_path(self.run.name, ".best.pt"))
        except OSError as error:
            self._warn_lost(str(error.strerror or error))
        else:
            self.best, self.better = self.better, {}

    def _warn_lost(self, reason: str) -> None:
        epoch, self.better = self.better["epoch"], {}
        self.run.warn(
            f"Epoch {epoch} is the best so far by {self.run.settings.keep_best}, but it could not be kept as the best "
            f"checkpoint ({reason}); free some space, training continues."
        )


class _Probe(KNN):
    """The evaluator of ``probe=``: 20 neighbours, or all images of a smaller training set."""

    def open(self, subject: Subject) -> None:
        self.k = min(self.k, len(subject.open(self.train)))
        super().open(subject)


def _asked_for(settings: Any) -> tuple[list[Evaluator], list[str]]:
    """All evaluators that ``supervise()`` was asked for, and what messages call them."""
    evaluators = check_evaluators(list(settings.evaluators))
    given = [e.name or type(e).__name__ for e in evaluators]
    if settings.probe is not None:
        evaluators, given = [_Probe(*settings.probe, every=settings.probe_every), *evaluators], ["probe", *given]
    if settings.testdata is not None:
        evaluators, given = [*evaluators, HeldOutLoss(settings.testdata)], [*given, "testdata"]
    return evaluators, given


def _check_names(values: dict[str, float]) -> None:
    for name in values:
        if (name in RESERVED and name != "knn") or name.startswith(("feature_", "embedding_")):
            raise ValueError(
                f"an evaluator gives the value {name!r}, which is a column of every run; give it another name."
            )
