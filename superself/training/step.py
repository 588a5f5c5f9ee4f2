"""TrainingStep: how a run gets the loss of a batch, and what it adds to an optimizer step, around any ``_update``."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from superself.training.averaging import WeightAverage
from superself.training.gradients import LossScale, clipping, freezing, with_gradient
from superself.training.schedules import Schedule
from superself.training.split_batch import MicroBatches, has_batch_norm, is_scalar, loss_in_parts, scaled_loss


class TrainingStep:
    """Splits batches, scales losses, clips gradients and averages weights, as the settings of the run say.

    By default it does nothing but call the module of the run. Everything else is part of the loss, or of hooks of the
    optimizer: before the step it is unscaled, checked and clipped, after a step that was taken the average moves.

    Args:
        run: its ``settings``, ``supervisor``, ``module``, ``precision``, ``autocast`` and ``metrics`` are used.
    Raises:
        ValueError: if ``accumulate`` would change the loss of the algorithm.
    """

    def __init__(self, run: Any) -> None:
        self.run, settings = run, run.settings
        supervisor = run.supervisor
        if settings.accumulate > 1 and supervisor.compares_images:
            raise ValueError(
                f"accumulate={settings.accumulate} computes a batch in parts, but the loss of {type(supervisor).__name__} "
                "compares the images of a batch with each other, so the mean over the parts is another loss; pass "
                f"micro_batch={max(1, settings.batch_size // settings.accumulate)} instead, which needs as little memory."
            )
        if settings.accumulate > 1 and (supervisor.compares_images is None or not supervisor.uses_its_own_loss):
            warnings.warn(
                f"accumulate={settings.accumulate} gives the gradient of the whole batch only if the loss is a mean over images "
                f"that are not compared with each other; if so, set compares_images = False in {type(supervisor).__name__}, "
                "otherwise pass micro_batch= instead.",
                stacklevel=5,
            )
        self.scale: LossScale | None = None
        self.average: WeightAverage | None = None
        self.micro: MicroBatches | None = None
        if settings.micro_batch is not None:
            self.micro = MicroBatches(supervisor._networks(), settings.micro_batch)
        self._hooks: list[Any] = []
        self._is_plain = settings.accumulate == 1 and self.micro is None and run.precision != "16-mixed"

    def open(self, optimizer: Optimizer) -> None:
        """Adds what the settings ask for to the optimizer; hooks that are added later see clipped gradients, or none."""
        run, settings = self.run, self.run.settings
        parameters = [parameter for parameter in run.supervisor.parameters() if parameter.requires_grad]
        scaled = run.precision == "16-mixed"
        wanted = {"precision='16-mixed'": scaled, "clip=": settings.clip is not None}
        wanted["average="] = settings.average is not None
        wanted["freezing parameters"] = any(True for _ in run.supervisor._frozen())
        wanted["a schedule of weight_decay"] = isinstance(settings.weight_decay, Schedule)
        for argument in (name for name, is_wanted in wanted.items() if is_wanted):
            if not hasattr(optimizer, "register_step_pre_hook"):
                raise TypeError(
                    f"{argument} acts before or after the steps of a torch.optim.Optimizer, and this optimizer is a "
                    f"{type(optimizer).__name__}; derive it from torch.optim.Optimizer, or leave {argument} out."
                )
        if scaled:
            self.scale = LossScale(run.supervisor.device, parameters)
        if settings.clip is not None:
            self._hooks.append(optimizer.register_step_pre_hook(clipping(settings.clip, run.supervisor.note)))
        if wanted["freezing parameters"]:
            self._hooks.append(optimizer.register_step_pre_hook(freezing(run.supervisor._frozen)))
        if isinstance(settings.weight_decay, Schedule):
            self._hooks.append(optimizer.register_step_pre_hook(self._schedule_decay))
        if settings.average is not None:
            self.average = WeightAverage(run.supervisor.exported_backbone, settings.average)
            self._hooks.append(optimizer.register_step_post_hook(self._move_average))
        run.supervisor.averaged_weights = None if self.average is None else self.average.values

    def forward(self, data: Any) -> Tensor:
        """The loss of a batch."""
        run = self.run
        if self._is_plain:
            with run.autocast():
                return run.module(data)
        scale = None if self.scale is None else self.scale.next()
        parts = run.settings.accumulate
        if parts > 1:
            return loss_in_parts(
                run.supervisor, data, parts, self._loss_of(run.supervisor), self._loss_of(run.module), scale
            )
        with contextlib.nullcontext() if self.micro is None else self.micro.over(len(data)):
            loss = self._loss_of(run.module)(data)
        return scaled_loss(loss, scale) if scale is not None and is_scalar(loss) else loss

    def _loss_of(self, module: nn.Module) -> Callable[[Any], Tensor]:
        def loss(data: Any) -> Tensor:
            with self.run.autocast():
                return module(data)

        return loss

    def _schedule_decay(self, optimizer: Optimizer, *_: Any) -> None:
        supervisor = self.run.supervisor
        decay = supervisor.scheduled(self.run.settings.weight_decay)
        supervisor.note("weight_decay", decay)
        for group in optimizer.param_groups:
            if "decay_factor" in group:
                group["weight_decay"] = group["decay_factor"] * decay

    def _move_average(self, optimizer: Optimizer, *_: Any) -> None:
        if with_gradient(optimizer):  # otherwise the step was left out
            self.average.update()

    def close(self) -> None:
        """Removes all hooks."""
        for hook in self._hooks:
            hook.remove()
        if self.scale is not None:
            self.scale.close()

    def describe(self) -> str:
        """How batches are split, for the first lines of a run; "" if they are not."""
        settings = self.run.settings
        norm = "; batch norm sees one part at a time" if has_batch_norm(self.run.supervisor) else ""
        if settings.accumulate > 1:
            each = settings.batch_size // settings.accumulate
            return f"; each step in {settings.accumulate} parts of {each} images{norm}"
        if self.micro is not None:
            norm = " and batch norm" if norm else ""
            return f"; networks{norm} see {settings.micro_batch} images at a time"
        return ""

    def state_dict(self) -> dict[str, Any]:
        """Scale and average, for a checkpoint."""
        return {
            "loss_scale": None if self.scale is None else self.scale.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Continues from the scale and the average of a stored run."""
        if self.scale is not None and stored.get("loss_scale"):
            self.scale.scaler.load_state_dict(stored["loss_scale"])
        if self.average is not None and stored.get("average"):
            self.average.load_state_dict(stored["average"])
