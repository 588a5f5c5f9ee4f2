"""NonFiniteGuard: what happens when a loss, a gradient or a weight is NaN or infinite (``on_nan=``)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from superself.basics.distributed import mean, rank, world_size
from superself.basics.random import seed_everything
from superself.training.checkpoint import nonfinite_names
from superself.training.gradients import require_gradients_before_step, with_gradient
from superself.training.stored_state import load_run_state

SKIPS_IN_A_ROW = 20  # skipped steps after which a run stops
SKIPPED_SHARE = 0.1  # of the steps of an epoch
FEW_SKIPS = 3  # that are allowed in epochs of any length
ROLLBACKS = 5  # of one run


class NonFiniteGuard:
    """Stops the run, skips the step, or goes back, when a value is not finite.

    "stop": the loss is looked at before each step on the CPU, and on an accelerator whenever it is fetched; the weights before
    they are stored. "skip" and "rollback" look at the loss and at the gradients before each step, which waits for an
    accelerator.

    Args:
        run: that is guarded.
    """

    def __init__(self, run: Any) -> None:
        self.run, self.policy = run, run.settings.on_nan
        self.skipped_steps = 0  # in this epoch
        self.rollbacks = 0
        self._in_a_row = 0
        self._found = ""  # what was not finite in this step
        self._kept: dict[str, Any] | None = None  # the state to go back to
        self._allowed: set[str] = set()

    def start(self) -> None:
        """Before the first step: notes which buffers hold infinities on purpose, such as masks."""
        parameters = {name for name, _ in self.run.supervisor.named_parameters()}
        self._allowed = set(nonfinite_names(self.run.supervisor.state_dict())) - parameters

    def row(self) -> dict[str, int]:
        """What the row of an epoch says."""
        if self.policy == "stop":
            return {}
        return {"skipped_steps": self.skipped_steps} if self.policy == "skip" else {"rollbacks": self.rollbacks}

    # ---- within a step -----------------------------------------------------------------------------------------------

    def accepts_loss(self, loss: Tensor) -> bool:
        """Whether the step is taken."""
        self._found = ""
        if self.policy == "stop":
            if loss.device.type == "cpu":
                self.require_finite_loss(loss.item())
            return True
        if self._everywhere(loss.detach().isfinite()):
            return True
        self._reject(f"loss is {loss.item()}")
        if self.policy == "skip":
            self.run.lr_scheduler.step()  # as _update does after a step without gradients
        return False

    def accepts_gradients(self, optimizer: Optimizer, args: tuple = (), kwargs: dict[str, Any] | None = None) -> bool:
        """Whether the optimizer steps; if not, the gradients are removed, which makes its step do nothing."""
        scale = self.run.training_step.scale
        if scale is not None:  # it drops float16 gradients that overflow, which is normal now and then
            scale.check(optimizer, args, kwargs)
            if scale.dropped >= SKIPS_IN_A_ROW:
                raise FloatingPointError(self._message(f"gradient is not finite in {scale.dropped} steps in a row"))
            return not scale.dropped
        if self.policy == "stop":
            return True
        require_gradients_before_step(f'on_nan="{self.policy}"', args, kwargs)
        parameters = with_gradient(optimizer)
        if not self._found:
            gradients = [p.grad._values() if p.grad.is_sparse else p.grad for p in parameters]
            largest = torch._foreach_norm([g for g in gradients if g.numel()], math.inf) if gradients else []
            device = self.run.supervisor.device
            if not largest or self._everywhere(torch.stack([value.to(device) for value in largest]).isfinite().all()):
                return True
            self._reject("gradient is not finite")
        for parameter in parameters:
            parameter.grad = None
        return False

    def skips_step(self) -> bool:
        """At the end of a step: whether it was left out. Counts such steps, and stops a run that leaves out too many."""
        if not self._found:
            self._in_a_row = 0
            return False
        found, self._found = self._found, ""
        self.skipped_steps += 1
        self._in_a_row += 1
        share = self.skipped_steps / max(self.run.steps_per_epoch, 1)
        if self._in_a_row >= SKIPS_IN_A_ROW or (self.skipped_steps > FEW_SKIPS and share > SKIPPED_SHARE):
            raise FloatingPointError(
                f'on_nan="skip" has left out {self.skipped_steps} of the {self.run.steps_per_epoch} steps of epoch '
                f"{self.run.epoch + 1} (limits: {SKIPS_IN_A_ROW} in a row, {SKIPPED_SHARE:.0%} of an epoch). "
                f"{self._message(found)}"
            )
        return True

    def end_epoch(self) -> None:
        """Says once per epoch how many steps were skipped."""
        if self.skipped_steps:
            count = self.skipped_steps
            self.run.warn(
                f"Epoch {self.run.epoch}: {count} of {self.run.steps_per_epoch} steps were skipped, because the loss or a "
                "gradient was not finite."
            )
        self.skipped_steps = 0

    # ---- going back --------------------------------------------------------------------------------------------------

    @property
    def is_due(self) -> bool:
        """Whether this step makes the run go back."""
        return bool(self._found) and self.policy == "rollback"

    def keep(self, state: dict[str, Any]) -> None:
        """Keeps a copy of the state, on the CPU, to go back to."""
        if self.policy == "rollback":
            self._kept = _copied(state)

    def roll_back(self, found: str = "") -> None:
        """Takes the run back to the last state that was kept, with other random numbers to come."""
        run, found = self.run, found or self._found
        self._found = ""
        if self.rollbacks >= ROLLBACKS:
            raise FloatingPointError(
                f'on_nan="rollback" has gone back {ROLLBACKS} times in this run. {self._message(found)}'
            )
        rollbacks, where = self.rollbacks + 1, f"epoch {run.epoch + 1}, step {run.step + 1}"
        state = _copied(self._kept)
        run.supervisor.load_state_dict(state["model"])
        load_run_state(run, state)
        self.rollbacks = rollbacks
        run.resumed_within_epoch = True  # _before_epoch was called before the state was kept
        seed = (run.supervisor.seed + 1_000_003 * self.rollbacks + 7919 * run.step) % 2**31
        seed_everything(seed, run.supervisor.generator)
        run.supervisor.generator.manual_seed(seed + rank())  # different views in each process
        run.warn(
            f"The {found} in {where}: gone back to the state after step {run.step}, with other random numbers "
            f"(rollback {self.rollbacks} of at most {ROLLBACKS}). Learning rate and data are unchanged."
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know."""
        return {
            "skipped_steps": self.skipped_steps,
            "rollbacks": self.rollbacks,
            "infinite": sorted(self._allowed),  # may be stored
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state_dict``."""
        self.skipped_steps, self.rollbacks = state.get("skipped_steps", 0), state.get("rollbacks", 0)

    # ---- checks ------------------------------------------------------------------------------------------------------

    def require_finite_loss(self, loss: float) -> None:
        """Raises a FloatingPointError if the loss is not finite."""
        if not math.isfinite(loss):
            raise FloatingPointError(self._message(f"loss is {loss}"))

    def require_finite_weights(self, model: dict[str, Any]) -> None:
        """Raises a FloatingPointError that names the first weight or buffer that is not finite."""
        wrong = set(nonfinite_names(model)) - self._allowed
        if wrong:
            first = next(name for name in model if name in wrong)
            more = f" and {len(wrong) - 1} more tensors are" if len(wrong) > 1 else " is"
            raise FloatingPointError(self._message(f"state {first}{more} not finite", step=self.run.step))

    def _reject(self, found: str) -> None:
        self._found = found
        self.run.boundary.undo_forward()

    def _everywhere(self, finite: Tensor) -> bool:
        """Whether it is finite in all processes, which have to decide the same."""
        return bool(finite) if world_size() == 1 else bool(mean(finite.float()) == 1)

    def _message(self, found: str, step: int | None = None) -> str:
        run = self.run
        remedies = "try a lower lr" + ("" if run.precision == "32-true" else ', precision="32-true"')
        if self.policy == "stop":
            remedies += ', or on_nan="skip"'
        return (
            f"The {found} in epoch {run.epoch + 1}, step {run.step + 1 if step is None else step}: {run.kept()}. Likely causes: "
            f"images with values that are not finite; {'; '.join(run.supervisor.likely_causes)}; {remedies}."
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


def _copied(value: Any) -> Any:
    """A copy of nested dicts, lists and tuples, with tensors on the CPU that share no memory with the originals."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return type(value)(map(_copied, value)) if type(value) in (list, tuple) else value
