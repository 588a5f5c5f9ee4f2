"""Run: what one call of supervise() owns - step, epoch, saving, the finite check, signals, metrics and trackers."""

from __future__ import annotations

import contextlib
import copy
import math
import signal
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from superself.basics.distributed import require_equal_rows
from superself.basics.output import print_line
from superself.training.boundary import StepBoundary
from superself.training.checkpoint import archived_path, expected_bytes, require_plain, write_checkpoint
from superself.training.checks import check_parts, check_tracker
from superself.training.ending import end_trackers, store_end
from superself.training.estimate import describe_plan
from superself.training.files import checkpoint_path, require_space
from superself.training.finite import NonFiniteGuard, check_scalar
from superself.training.gradient_watch import GradientWatch
from superself.training.hyper_parameters import run_identity
from superself.training.interrupt import FinishStepOnSignal
from superself.training.intervals import parse_duration
from superself.training.metrics import Metrics
from superself.training.out_of_memory import explain_out_of_memory
from superself.training.parallel import Parallel
from superself.training.precision import autocast, choose_precision
from superself.training.saving import Saving
from superself.training.settings import Settings
from superself.training.step import TrainingStep
from superself.training.stored_state import all_random_state, load_run_state, run_state, set_all_random_state
from superself.training.trackers import Record, Tracker

REFRESH_SECONDS = 0.3  # how often trackers see a step; on an accelerator the only time the loss is fetched


class Run(Saving):
    """One call of ``supervise()``: everything that the loop needs and no algorithm has to know.

    Args:
        supervisor: the Supervisor that is trained, with its networks built.
        settings: the validated arguments of ``supervise()``.
        parallel: the processes that take part; None for this one alone.
    """

    def __init__(self, supervisor: Any, settings: Settings, parallel: Parallel | None = None) -> None:
        if supervisor.run is not None and supervisor.run.is_active:
            raise RuntimeError(
                f"supervise() was called within a run of the same supervisor ({supervisor.run.name}); wait until it ends, or "
                "train another supervisor."
            )
        self.supervisor, self.settings, self.name = supervisor, settings, str(settings.name)
        self.parallel = parallel or Parallel(supervisor.device)
        self.module: nn.Module = supervisor  # what the loop calls; a wrapper for several processes goes around it
        self.step = self.epoch = self.steps_per_epoch = self.total_steps = 0
        self.epoch_began = 0  # the step at which this epoch began
        self.metrics, self.signals = Metrics(), FinishStepOnSignal(self._announce if settings.progress else None)
        self.guard, self.boundary = NonFiniteGuard(self), StepBoundary(self)
        self.is_active = False  # within ``with run``
        self.stepped = False  # whether the last step was taken, rather than skipped
        self._has_stepped = False  # whether the optimizer ever was
        self.trackers: list[Tracker] = []
        self.notes = settings.notes
        self.initial_features: dict[str, float] = {}  # measured before the first step of a new run
        self.initial_row: dict[str, Any] = {}  # row 0 of NAME.csv, if there are evaluators
        self.main_values: list[str] = []  # what the line of an epoch shows of the evaluators first
        self.detailed_values: set[str] = set()  # what it leaves out
        self.saved_step: int | None = None  # of the file that this run wrote last
        self.resumed_within_epoch = False
        self._watch: GradientWatch | None = None  # during the first step
        self.tracker_states: list[dict[str, Any]] | None = None  # before they measure the end of an epoch
        self._save_every = self._save_at = parse_duration("save_every", settings.save_every) or math.inf  # seconds
        self.stored_processes = self.parallel.world_size  # of the run that is continued
        self.began_at = 0  # the step that this call of supervise() starts from
        self.continues = self._recording = False  # whether there is a file to resume; whether NAME belongs to this run
        self.epoch_random: dict[str, Any] | None = None  # before this epoch, where a user's loader draws the order
        self._began, self._waited, self._images, self._steps_timed, self._drawn = 0.0, 0.0, 0, 0, 0.0
        device = supervisor.device
        self.precision = choose_precision(settings.precision, device, supervisor)
        self.autocast = autocast(self.precision, device)
        self.training_step = TrainingStep(self)
        self.identity = run_identity(supervisor, settings, self.precision)  # before anything is wrapped

    # ---- start and end -----------------------------------------------------------------------------------------------

    def open(self, loader: Any, optimizer: Optimizer, lr_scheduler: Any, stored: dict[str, Any] | None) -> None:
        """Takes what ``_init_data_optimizer`` made, continues a stored run, and notifies the trackers."""
        self.loader, self.optimizer, self.lr_scheduler = loader, optimizer, lr_scheduler
        self.sampler = getattr(loader, "sampler", None)
        check_parts(loader, optimizer, lr_scheduler)
        for tracker in self.settings.trackers:
            check_tracker(tracker)
        try:
            self.count_steps(loader)
        except TypeError as error:
            raise TypeError(
                f"the loader is a {type(loader).__name__}, which has no len(), so the number of steps is unknown; return one "
                "with a length from _init_data_optimizer, for example a DataLoader over a map-style data set."
            ) from error
        self.training_step.open(optimizer)
        chance = self.supervisor.chance_loss if self.supervisor.uses_its_own_loss else None
        self.chance_loss = None if chance is None else float(chance)  # may be measured on the data, so only once
        self.trackers = [*self.supervisor._trackers(), *self.settings.trackers] if self.parallel.is_first else []
        if stored is not None:
            load_run_state(self, stored)
            self.notes = self.notes if self.notes is not None else stored["settings"].get("notes")
        self.continues = stored is not None
        self._join_processes()
        kept = None if self.continues or self.settings.overwrite else archived_path(self.name)
        self.facts = self.supervisor._facts() | {
            "notes": self.notes,
            "settings": self.settings.describe(),
            "precision": self.precision,
            "epochs": self.settings.epochs,
            "steps_per_epoch": self.steps_per_epoch,
            "resumed_at_step": self.step,
            "processes": self.parallel.world_size,
            "plan": describe_plan(self, kept),
        }
        state = run_state(self)
        require_plain(state)
        replaces = kept is None and checkpoint_path(self.name).is_file()
        self.began_at = self.step
        with self.parallel.solo(self.supervisor):
            if self.parallel.is_first:
                require_space(self.name, expected_bytes(state, optimizer), copies=1 if replaces else 2)
            for tracker in self.trackers:
                if not isinstance(tracker, Record):
                    tracker.start({**self.facts, "run": self})
            for tracker in self.trackers if self.initial_row else ():
                tracker.baseline(dict(self.initial_row))

    def _join_processes(self) -> None:
        """Makes all processes start from the weights of the first, and wraps what the loop calls."""
        if not self.parallel.several:
            return
        supervisor, parallel = self.supervisor, self.parallel
        images = supervisor.images
        parallel.require_equal("the data set (images, fingerprint)", (len(images), images.fingerprint))
        parallel.require_equal("the number of steps per epoch", self.steps_per_epoch)
        supervisor.preprocessing = parallel.broadcast(supervisor.preprocessing)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.module = parallel.wrap(supervisor, trained, supervisor.skips_parameters)

    def count_steps(self, loader: Any) -> None:
        """Sets the number of steps of an epoch and of the run."""
        self.steps_per_epoch = len(loader)
        self.total_steps = self.epoch_began + self.steps_per_epoch * max(0, self.settings.epochs - self.epoch)

    def __enter__(self) -> Run:
        self.signals.__enter__()
        self._watch = GradientWatch(self.supervisor)
        self._step_hook = register_optimizer_step_pre_hook(self._before_optimizer_step)
        self._parameters = {id(parameter) for parameter in self.supervisor.parameters()}
        self.guard.start()
        self._save_at = time.perf_counter() + self._save_every
        self.is_active = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        try:
            failure = store_end(self, error)
        finally:
            self.is_active = False
            self._remove_hooks()
            self.module = self.supervisor
            self.signals.__exit__(kind, error, traceback)
        end_trackers(self, error, failure)
        if failure is not None and error is None:
            raise failure
        if error is None:
            self.signals.leave()  # a signal that came after the last step
        if isinstance(error, RuntimeError) and self.signals.received is not None:  # it made a loader's worker fail
            warnings.warn(f"after the signal: {error!r}", stacklevel=2)
            self.signals.leave()
        explained = explain_out_of_memory(error, self.supervisor)
        if explained is not None:
            raise explained from error

    def _remove_hooks(self) -> None:
        self.training_step.close()
        self._step_hook.remove()
        if self._watch is not None:
            self._watch.remove()

    def _announce(self, number: int) -> None:
        self.print(f"{signal.Signals(number).name}: finishing the step, then saving; send it again to stop at once.")

    def print(self, text: str) -> None:
        """Prints a line where there is a progress line."""
        if self.settings.progress and self.parallel.is_first:
            with contextlib.suppress(RuntimeError):  # a signal in the middle of another print
                print_line(text)

    # ---- the loop calls these ----------------------------------------------------------------------------------------

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The rest of this epoch's batches, on the device of the networks; measures the time spent waiting for them."""
        self.parallel.synchronize(self.supervisor)  # _before_epoch may have drawn or computed something
        self.boundary.begin_epoch()
        if self.guard.policy == "rollback":
            self.guard.keep(run_state(self))
        rollbacks = None
        while rollbacks != self.guard.rollbacks:
            rollbacks = self.guard.rollbacks
            yield from self._batches_until_rollback(loader)

    def _batches_until_rollback(self, loader: Iterable[Any]) -> Iterator[Any]:
        done = self.step - self.epoch_began
        skips_itself = getattr(self.sampler, "skips_batches", False)
        if skips_itself:
            self.sampler.set_epoch(self.epoch, start=done)
        elif hasattr(self.sampler, "set_epoch"):  # torch's DistributedSampler
            self.sampler.set_epoch(self.epoch)
        supervisor, signals, rollbacks = self.supervisor, self.signals, self.guard.rollbacks
        if hasattr(loader, "__len__"):
            self.count_steps(loader)  # a sampler may have got other images
        self._waited, self._images, self._steps_timed, self._drawn = 0.0, 0, 0, 0.0
        self._began = asked = time.perf_counter()
        skipped, continued = 0 if skips_itself else done, all_random_state(self)
        if skipped and self.epoch_random is not None:  # a user's loader draws the same order again
            set_all_random_state(self, self.epoch_random)
        else:
            self.epoch_random = None if skips_itself else continued
        signals.is_waiting = True
        for position, values in enumerate(loader):
            if position < skipped:
                if position == skipped - 1:
                    set_all_random_state(self, continued)
                continue
            data = supervisor._as_batch(values).to(supervisor.device)
            if not skips_itself:  # a user's loader
                require_equal_rows(len(data), supervisor.device)
            signals.is_waiting = False
            if position == skipped:
                signals.hold_back_children()
            self._waited += time.perf_counter() - asked
            self._images += len(data)
            yield data
            if self.guard.rollbacks != rollbacks:
                return
            if self.parallel.stops(signals.received):  # a loop that does not call end_step
                self._leave()
            signals.is_waiting = True
            signals.report_children()
            asked = time.perf_counter()
        signals.is_waiting = False

    def forward(self, data: Any) -> Tensor:
        """The loss of a batch, in the precision of the run; its ``backward()`` gives the gradient of the whole batch."""
        return self.parallel.share_value(self.boundary.forward(data))

    def accepts(self, loss: Tensor) -> bool:
        """Whether the optimizer steps: the loss must be a finite scalar; see NonFiniteGuard for when it is looked at."""
        check_scalar(loss, self.supervisor)
        self.stepped = self.guard.accepts_loss(loss)
        if not isinstance(self.optimizer, Optimizer):  # whose steps torch does not report
            self._has_stepped = True
            self.boundary.leave()
        return self.stepped

    def _before_optimizer_step(self, optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
        """Called by torch before any optimizer steps: looks at the gradients if they are guarded."""
        if optimizer is not self.optimizer and id(optimizer.param_groups[0]["params"][0]) not in self._parameters:
            return  # of another run
        if self.guard.accepts_gradients(optimizer, args, kwargs):
            self._has_stepped = True
            self.boundary.leave()
        else:
            self.stepped = False

    def end_step(self, loss: Tensor) -> None:
        """Counts the step, shows it now and then, and leaves after a signal."""
        if self.guard.is_due:
            self.guard.roll_back()
            self.boundary.begin_epoch()
            return
        self._start_record()
        if not self.guard.skips_step():
            self.metrics.add("loss", loss)
        self.step += 1
        self._steps_timed += 1
        if self._watch is not None and self.stepped:
            self._report_gradients()
        self.boundary.mark()
        now = time.perf_counter()
        save = now >= self._save_at or self.signals.asked_to_save
        if self.parallel.due(self.step, now - self._drawn >= REFRESH_SECONDS):
            self._drawn = now
            self.parallel.exchange(self.step, self.signals.received, save)
            row = self.summary()
            self._require_finite(row)
            for tracker in self.trackers:
                tracker.step(row)
        if self.parallel.stops(self.signals.received):
            self._require_finite(self.summary())
            self._leave()
        if self.parallel.saves(save):
            self.signals.asked_to_save = False
            self._save_within_epoch()

    def _report_gradients(self) -> None:
        if self._watch.problem():
            self.warn(self._watch.problem())
        self._watch.remove()
        self._watch = None

    def end_epoch(self) -> None:
        """Measures, saves and reports the epoch."""
        row = self.parallel.average({**self.summary(), **self.guard.row()})
        self._require_finite(row)
        if not self._has_stepped and self.guard.policy == "stop":
            self.warn(
                "No weight has changed: _update() never called optimizer.step(); call it after the backward pass."
            )
        self.parallel.average_running_statistics(self.supervisor, self.supervisor.averaged_weights)
        try:
            with self.parallel.solo():
                self._require_finite_weights(self.supervisor.state_dict())
        except FloatingPointError as error:
            return self._stop_or_roll_back(error)
        self.parallel.require_equal_weights(self.supervisor)
        self.tracker_states = copy.deepcopy([tracker.state_dict() for tracker in self.trackers])
        self.epoch += 1
        self.epoch_began = self.step
        self.resumed_within_epoch = False
        for broken in self.parallel.gather(self.supervisor.images.broken):
            self.supervisor.images.report_broken(broken)  # each process reads its own part
        with self.parallel.solo(self.supervisor):
            for tracker in self.trackers:
                row.update(tracker.measure(row) or {})
        self.metrics.clear()
        self.guard.end_epoch()
        self.tracker_states = None
        self.boundary.leave()  # until the next epoch begins
        try:
            self.save()
        except OSError as error:  # a full disk: the last file is whole, and the next epoch tries again
            self._warn_unsaved(f"epoch {self.epoch} could not be saved ({error}); free some space, training continues.")
        with self.parallel.solo():
            for tracker in self.trackers:
                tracker.epoch(row)

    def summary(self) -> dict[str, Any]:
        """The means of the epoch so far as a row of plain numbers; fetches them from the device."""
        means = self.metrics.means()
        seconds = max(time.perf_counter() - self._began, 1e-9)
        left = (self.total_steps - self.step) * seconds / self._steps_timed if self._steps_timed else 0.0
        return {
            "epoch": self.epoch + 1,
            "step": self.step - self.epoch_began,
            "loss": means.pop("loss", float("nan")),
            "chance_loss": self.chance_loss,
            **means,
            "images_per_second": self._images * self.parallel.world_size / seconds,
            "waiting_share": self._waited / seconds,
            "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": seconds,
            "seconds_left": left,
        }

    def warn(self, text: str) -> None:
        """Tells every tracker what looks wrong."""
        for tracker in self.trackers:
            tracker.warn(text)

    def figure(self, name: str, path: Path) -> None:
        """Tells every tracker of a picture that was written."""
        for tracker in self.trackers:
            tracker.figure(name, path)

    def reset_optimizer_state(self, module: nn.Module) -> None:
        """Clears the optimizer state of a re-initialised module, such as momenta; for use in ``_before_epoch``."""
        for parameter in module.parameters():
            self.optimizer.state.pop(parameter, None)

    @property
    def skipped(self) -> dict[str, str]:
        """Images that could not be read, with the reason."""
        return self.supervisor.images.skipped

    @property
    def progress(self) -> float:
        """Share of the optimizer steps that are done, from 0 to 1."""
        return self.step / max(self.total_steps, 1)

    def save(self) -> None:
        """Writes NAME.pt.

        Raises:
            OSError: if that fails; the previous file is kept.
            FloatingPointError: if a weight is not finite; the previous file is kept.
        """
        self._start_record()
        self.parallel.average_running_statistics(self.supervisor, self.supervisor.averaged_weights)
        state = run_state(self)
        with self.parallel.solo():
            self._require_finite_weights(state["model"])
            if self.parallel.is_first:
                write_checkpoint(self.name, state)
        self.saved_step, self._save_at = self.step, time.perf_counter() + self._save_every
        self.guard.keep(state)
