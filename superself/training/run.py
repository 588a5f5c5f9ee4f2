"""Run: what one call of supervise() owns - step, epoch, saving, the finite check, signals, metrics and trackers."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from superself.basics.random import preserve_random_state, random_state, set_random_state
from superself.training.checkpoint import (
    archive,
    archived_path,
    checkpoint_path,
    plain_dicts,
    require_plain,
    write_checkpoint,
)
from superself.training.hyper_parameters import run_identity
from superself.training.interrupt import FinishStepOnSignal
from superself.training.metrics import Metrics
from superself.training.precision import autocast, choose_precision
from superself.training.settings import Settings
from superself.training.trackers import Record, Tracker
from superself.training.trackers.progress import duration

REFRESH_SECONDS = 0.3  # how often trackers see a step; on an accelerator the only time the loss is fetched


class Run:
    """One call of ``supervise()``: everything that the loop needs and no algorithm has to know.

    Args:
        supervisor: the Supervisor that is trained, with its networks built.
        settings: the validated arguments of ``supervise()``.
    """

    def __init__(self, supervisor: Any, settings: Settings) -> None:
        self.supervisor, self.settings, self.name = supervisor, settings, str(settings.name)
        self.module: nn.Module = supervisor  # what the loop calls; a wrapper for several processes goes around it
        self.step = self.epoch = self.steps_per_epoch = self.total_steps = 0
        self.epoch_began = 0  # the step at which this epoch began
        self.metrics, self.signals = Metrics(), FinishStepOnSignal()
        self.trackers: list[Tracker] = []
        self.saved_step: int | None = None  # of the file that this run wrote last
        self.resumed_within_epoch = False
        self._no_gradient, self._hooks = "", []
        self._began_at = 0  # the step that this call of supervise() starts from
        self._continues = self._recording = False  # whether there is a file to resume; whether NAME belongs to this run
        self._epoch_random: dict[str, Any] | None = None  # before this epoch, where a user's loader draws the order
        self._began, self._waited, self._images, self._steps_timed, self._drawn = 0.0, 0.0, 0, 0, 0.0
        device = supervisor.device
        self.precision = choose_precision(settings.precision, device, supervisor)
        self.autocast = autocast(self.precision, device)
        self.identity = run_identity(supervisor, settings, self.precision)  # before anything is wrapped

    # ---- start and end -----------------------------------------------------------------------------------------------

    def open(self, loader: Any, optimizer: Optimizer, lr_scheduler: Any, stored: dict[str, Any] | None) -> None:
        """Takes what ``_init_data_optimizer`` made, continues a stored run, and notifies the trackers."""
        self.loader, self.optimizer, self.lr_scheduler = loader, optimizer, lr_scheduler
        self.sampler = getattr(loader, "sampler", None)
        try:
            self._count_steps(loader)
        except TypeError as error:
            raise TypeError(
                f"the loader is a {type(loader).__name__}, which has no len(), so the number of steps is unknown; return one "
                "with a length from _init_data_optimizer, for example a DataLoader over a map-style data set."
            ) from error
        chance = self.supervisor.chance_loss if self.supervisor.uses_its_own_loss else None
        self.chance_loss = None if chance is None else float(chance)  # may be measured on the data, so only once
        self.trackers = [*self.supervisor._trackers(), *self.settings.trackers]
        if stored is not None:
            self._load_state(stored)
        self._continues = stored is not None
        kept = None if self._continues or self.settings.overwrite else archived_path(self.name)
        self.facts = self.supervisor._facts() | {
            "settings": self.settings.describe(),
            "precision": self.precision,
            "epochs": self.settings.epochs,
            "steps_per_epoch": self.steps_per_epoch,
            "resumed_at_step": self.step,
            "plan": self._plan(kept),
        }
        require_plain(self._state())
        self._began_at = self.step
        for tracker in self.trackers:
            if not isinstance(tracker, Record):
                tracker.start({**self.facts, "run": self})

    def _start_record(self) -> None:
        """Moves the run of this name out of the way and starts the record, not before a step of this run has succeeded."""
        if self._recording:
            return
        self._recording = True
        if not (self._continues or self.settings.overwrite):
            archive(self.name)
        for tracker in self.trackers:
            if isinstance(tracker, Record):
                tracker.start({**self.facts, "run": self})

    def _count_steps(self, loader: Any) -> None:
        self.steps_per_epoch = len(loader)
        self.total_steps = self.epoch_began + self.steps_per_epoch * max(0, self.settings.epochs - self.epoch)

    def __enter__(self) -> Run:
        self.signals.__enter__()
        self._watch_gradients()
        self._watch_optimizer()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        self._remove_hooks()
        interrupted = self.signals.received is not None or (
            kind is not None and issubclass(kind, (KeyboardInterrupt, SystemExit))
        )
        try:
            if kind is None and self.saved_step != self.step:  # a full disk at the last epoch, or a user's own loop
                self.save()
            if kind is None and self.step == self._began_at < self.total_steps:
                self.warn(
                    "The loop did not call run.end_step(), so the stored run counts no steps and resuming repeats them."
                )
        finally:
            self.signals.__exit__(kind, error, traceback)
            state = "interrupted" if interrupted else "finished" if kind is None else "stopped by an error"
            for tracker in self.trackers:
                tracker.end(state)
        if kind is None:
            self.signals.leave()  # a signal that came after the last step

    def _watch_gradients(self) -> None:
        """Notes whether the first step brings the backbone a gradient; ``end_step`` reports it."""
        parameters = list(self.supervisor.exported_backbone.parameters())
        trainable = [p for p in parameters if p.requires_grad]
        self._gradient_seen, self._hooks = False, []
        self._no_gradient = ""
        if not self.supervisor.trains_backbone:
            return
        if not parameters:
            self._no_gradient = "it has no parameters"
        elif not trainable:
            self._no_gradient = "all of its parameters are frozen; call backbone.requires_grad_(True)"
        else:
            self._no_gradient = (
                "it is detached from the loss; look for detach(), no_grad() or another network in _forward"
            )

        def note(gradient: Tensor) -> None:
            self._gradient_seen = True

        self._hooks = [p.register_hook(note) for p in trainable]

    def _watch_optimizer(self) -> None:
        """Notes whether the optimizer ever steps; ``end_epoch`` reports it."""
        self._has_stepped = not hasattr(self.optimizer, "register_step_post_hook")
        if self._has_stepped:  # not one of torch's
            return

        def note(*_: Any) -> None:
            self._has_stepped = True
            handle.remove()

        handle = self.optimizer.register_step_post_hook(note)

    def _report_gradients(self) -> None:
        if self._no_gradient and not self._gradient_seen:
            self.warn(f"Training does not change the backbone: {self._no_gradient}.")
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._no_gradient = [], ""

    def _plan(self, kept: Any) -> str:
        epochs = f"{self.settings.epochs} epoch{'s' * (self.settings.epochs > 1)}"
        plan = f"{epochs} of {self.steps_per_epoch} steps, stored as {checkpoint_path(self.name)}"
        if self.step:
            plan += f", resumed after step {self.step}"
        if self.step and self.step >= self.total_steps:
            plan += "; this run is already finished, pass a larger epochs= to continue it"
        if kept is not None:
            plan += f"; the run that was there is kept as {kept} (resume=True would continue it)"
        if self.settings.progress and self.step < self.total_steps:
            seconds = self._estimate_seconds()
            plan += "" if seconds is None else f"; about {duration(seconds)}"
        return plan

    def _estimate_seconds(self) -> float | None:
        """How long the run will take, measured on a forward and backward pass; restores all state."""
        supervisor = self.supervisor
        if not hasattr(self.loader, "peek"):
            return None
        buffers = {name: buffer.clone() for name, buffer in supervisor.named_buffers()}
        training = {module: module.training for module in supervisor.modules()}
        state, metrics = supervisor.generator.get_state(), self.metrics
        seconds = 0.0
        try:
            with preserve_random_state():
                self.metrics = Metrics()
                supervisor.train()
                data = supervisor._as_batch(self.loader.peek()).to(supervisor.device)
                for _ in range(2):  # the first pass also warms up
                    began = time.perf_counter()
                    with self.autocast():
                        loss = self.module(data)
                    check_scalar(loss, supervisor)
                    loss.backward()
                    loss.item()
                    seconds = time.perf_counter() - began
                    if seconds > 1:
                        break
        finally:
            self.metrics = metrics
            supervisor.zero_grad(set_to_none=True)
            supervisor.generator.set_state(state)
            with torch.no_grad():
                for name, buffer in supervisor.named_buffers():
                    if name in buffers:
                        buffer.copy_(buffers[name])
            for module, mode in training.items():
                module.training = mode
        return seconds * (self.total_steps - self.step)

    # ---- the loop calls these ----------------------------------------------------------------------------------------

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The rest of this epoch's batches, on the device of the networks; measures the time spent waiting for them."""
        done = self.step - self.epoch_began
        skips_itself = getattr(self.sampler, "skips_batches", False)
        if skips_itself:
            self.sampler.set_epoch(self.epoch, start=done)
        elif hasattr(self.sampler, "set_epoch"):  # torch's DistributedSampler
            self.sampler.set_epoch(self.epoch)
        supervisor = self.supervisor
        if hasattr(loader, "__len__"):
            self._count_steps(loader)  # a sampler may have got other images
        self._waited, self._images, self._steps_timed, self._drawn = 0.0, 0, 0, 0.0
        self._began = asked = time.perf_counter()
        skipped, continued = 0 if skips_itself else done, self._random_state()
        if skipped and self._epoch_random is not None:  # a user's loader draws the same order again
            self._set_random_state(self._epoch_random)
        else:
            self._epoch_random = None if skips_itself else continued
        for position, values in enumerate(loader):
            if position < skipped:
                if position == skipped - 1:
                    self._set_random_state(continued)
                continue
            data = supervisor._as_batch(values).to(supervisor.device)
            self._waited += time.perf_counter() - asked
            self._images += len(data)
            yield data
            if self.signals.received:  # a loop that does not call end_step
                self._leave()
            asked = time.perf_counter()

    def forward(self, data: Any) -> Tensor:
        """The loss of a batch, in the precision of the run."""
        with self.autocast():
            return self.module(data)

    def accepts(self, loss: Tensor) -> bool:
        """Whether the step is taken: the loss must be a finite scalar; on an accelerator this is seen when it is fetched."""
        check_scalar(loss, self.supervisor)
        if loss.device.type == "cpu":
            self._require_finite(loss.item())
        return True

    def end_step(self, loss: Tensor) -> None:
        """Counts the step, shows it now and then, and leaves after a signal."""
        self._start_record()
        self.metrics.add("loss", loss)
        self.step += 1
        self._steps_timed += 1
        if self._no_gradient:
            self._report_gradients()
        now = time.perf_counter()
        if now - self._drawn >= REFRESH_SECONDS:
            self._drawn = now
            row = self.summary()
            self._require_finite(row["loss"])
            for tracker in self.trackers:
                tracker.step(row)
        if self.signals.received:
            self._require_finite(self.metrics.means()["loss"])
            self._leave()

    def _leave(self) -> None:
        """Stores the run between two steps and ends it as the signal asks."""
        self.save()
        if self.settings.progress:
            with contextlib.suppress(OSError, ValueError, AttributeError):  # a closed output
                print(
                    f"Stopped after step {self.step}, saved to {self.name}.pt; pass resume=True to continue.",
                    flush=True,
                )
        self.signals.leave()

    def end_epoch(self) -> None:
        """Measures, saves and reports the epoch."""
        row = self.summary()
        self._require_finite(row["loss"])
        if not self._has_stepped:
            self.warn(
                "No weight has changed: _update() never called optimizer.step(); call loss.backward() and then it."
            )
        self.epoch += 1
        self.epoch_began = self.step
        self.resumed_within_epoch = False
        for tracker in self.trackers:
            row.update(tracker.measure(row))
        self.metrics.clear()
        try:
            self.save()
        except OSError as error:  # a full disk: the last file is whole, and the next epoch tries again
            warnings.warn(
                f"epoch {self.epoch} could not be saved ({error}); free some space, training continues.", stacklevel=3
            )
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
            "images_per_second": self._images / seconds,
            "waiting_share": self._waited / seconds,
            "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": seconds,
            "seconds_left": left,
        }

    def warn(self, text: str) -> None:
        """Tells every tracker what looks wrong."""
        for tracker in self.trackers:
            tracker.warn(text)

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

    # ---- saving ------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes NAME.pt."""
        self._start_record()
        write_checkpoint(self.name, self._state())
        self.saved_step = self.step

    def _state(self) -> dict[str, Any]:
        return {
            **self.supervisor._state(),
            "step": self.step,
            "epoch": self.epoch,
            "epoch_began": self.epoch_began,
            "epoch_random": self._epoch_random,
            "settings": {**self.settings.describe(), "precision": self.precision},
            "optimizer": plain_dicts(self.optimizer.state_dict()),
            "lr_scheduler": plain_dicts(self.lr_scheduler.state_dict()),
            "sampler": self.sampler.state_dict() if hasattr(self.sampler, "state_dict") else {},
            "metrics": self.metrics.state_dict(),
            "trackers": [(type(tracker).__name__, tracker.state_dict()) for tracker in self.trackers],
            "random": self._random_state(),
        }

    def _random_state(self) -> dict[str, Any]:
        """Of all random sources, and of the generator of a user's DataLoader."""
        state, own = random_state(self.supervisor.generator), getattr(self.loader, "generator", None)
        return state if own is None else {**state, "loader": own.get_state()}

    def _set_random_state(self, state: dict[str, Any]) -> None:
        set_random_state(state, self.supervisor.generator)
        own = getattr(self.loader, "generator", None)
        if own is not None and "loader" in state:
            own.set_state(state["loader"])

    def _load_state(self, stored: dict[str, Any]) -> None:
        self.step, self.epoch, self.epoch_began = stored["step"], stored["epoch"], stored["epoch_began"]
        self._epoch_random = stored["epoch_random"]
        self.resumed_within_epoch = self.step > self.epoch_began
        self.optimizer.load_state_dict(stored["optimizer"])
        self.lr_scheduler.load_state_dict(stored["lr_scheduler"])
        if stored["sampler"]:
            self.sampler.load_state_dict(stored["sampler"])
        self._count_steps(self.loader)
        self.metrics.load_state_dict(stored["metrics"])
        states = list(stored["trackers"])
        for tracker in self.trackers:
            mine = next((pair for pair in states if pair[0] == type(tracker).__name__), None)
            if mine is not None:
                states.remove(mine)
                tracker.load_state_dict(mine[1])
        self._set_random_state(stored["random"])

    def _require_finite(self, loss: float) -> None:
        if math.isfinite(loss):
            return
        is_stored = self._continues or self.saved_step is not None
        kept = f"{self.name}.pt keeps the last good epoch" if is_stored else "nothing has been stored yet"
        remedies = "try a lower lr" + ("" if self.precision == "32-true" else ' or precision="32-true"')
        raise FloatingPointError(
            f"The loss is {loss} in epoch {self.epoch + 1}, step {self.step + 1}: {kept}. Likely causes: images with values that "
            f"are not finite; {'; '.join(self.supervisor.likely_causes)}; {remedies}."
        )


def check_scalar(loss: Any, supervisor: nn.Module) -> None:
    """Raises a TypeError if what ``_forward`` returned is not a scalar tensor."""
    if not isinstance(loss, Tensor) or loss.ndim:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{type(loss).__name__}"
        raise TypeError(
            f"{type(supervisor).__name__}._forward returned {found}, but a scalar loss is needed; return for example loss.mean()."
        )
    if loss.requires_grad and not loss.is_complex():
        return
    if loss.is_complex() or type(supervisor)._update.__module__ == "superself.supervisor":  # one that calls backward()
        raise TypeError(
            f"{type(supervisor).__name__}._forward returned a loss ({loss.dtype}) from which no gradient flows to the networks; "
            "leave out detach(), torch.no_grad() and conversions to integers, also around supervise(), and unfreeze a part of "
            "the networks."
        )
