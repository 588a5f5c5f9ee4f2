"""WandbTracker: a run of superself as a run of Weights & Biases, offline unless asked otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from superself.basics.random import preserve_random_state
from superself.basics.validate import require_choice
from superself.training.trackers.external import ExternalTracker, grouped_within_epoch, parameters

MODES = ("offline", "online", "disabled")


class WandbTracker(ExternalTracker):
    """Writes a run for Weights & Biases: parameters, values, figures, notes and warnings.

    Offline by default: nothing leaves this computer, no account is needed, and nothing is asked. ``wandb sync FOLDER`` uploads
    what was written. A run that W&B has active in this process is left alone. A resumed run has the same id, so that both
    parts become one run when they are uploaded.

    Args:
        project: of W&B.
        mode: "offline"; "online" uploads while it trains, which needs ``wandb login`` before; "disabled" writes nothing.
        every_step: also write values within epochs (a few times a second).
        **options: of ``wandb.init``, for example entity, group or tags.
    Raises:
        ImportError: if wandb is not installed.
        ValueError: if ``mode`` is unknown.
    """

    library: ClassVar[str] = "wandb"

    def __init__(
        self, project: str | None = None, mode: str = "offline", every_step: bool = True, **options: Any
    ) -> None:
        require_choice("mode", mode, MODES)
        super().__init__()
        self.project, self.mode, self.every_step, self.options = project or "superself", mode, every_step, options
        self.run_id: str | None = None  # of W&B
        self._run: Any = None

    def start(self, facts: dict[str, Any]) -> None:
        """Opens the run in W&B.

        Raises:
            RuntimeError: if ``mode="online"`` and nobody is logged in.
        """
        super().start(facts)
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would report errors of its own to its makers
        import wandb

        if self.mode == "online" and not _is_logged_in(wandb):
            raise RuntimeError(
                'WandbTracker(mode="online") needs an account and nobody is logged in; run "wandb login" first, or pass '
                'mode="offline".'
            )
        name = Path(self.run.name)
        name.parent.mkdir(parents=True, exist_ok=True)
        options = {
            "project": self.project,
            "name": name.name,
            "dir": str(name.parent),
            "id": self.run_id,
            "resume": "allow" if self.run_id and self.mode == "online" else None,
            "mode": self.mode,
            "notes": self.notes,
            "config": parameters(self.facts),
            "reinit": "create_new",
            "settings": wandb.Settings(
                console="off", silent=True, disable_git=True, save_code=False, x_disable_stats=True
            ),
        }
        with preserve_random_state():
            self._run = wandb.init(**{**options, **self.options})
        self.run_id = self._run.id
        self.folder = Path(self._run.dir).parent
        self._begin()

    def step(self, row: dict[str, Any]) -> None:
        """Writes the means of the epoch so far."""
        if self.every_step:
            step, values = self.run.step, grouped_within_epoch(row)
            self._send(lambda: self._run.log(values, step=step), keep=False)

    def state_dict(self) -> dict[str, Any]:
        """The latest values, and the run of W&B."""
        return {**super().state_dict(), "run_id": self.run_id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues the run of W&B."""
        super().load_state_dict(state)
        self.run_id = state.get("run_id")

    def _write_values(self, values: dict[str, float], step: int, epoch: int) -> None:
        chance = self.run.chance_loss
        self._run.log(values if chance is None else {**values, "loss/chance": chance}, step=step)

    def _write_figure(self, name: str, path: Path, step: int) -> None:
        import wandb

        if path.suffix.lower() in (".png", ".jpg", ".jpeg") and path.is_file():
            self._run.log({f"figures/{name}": wandb.Image(str(path))}, step=step)

    def _write_warning(self, text: str, step: int) -> None:
        self._run.summary["warnings"] = [*(self._run.summary.get("warnings") or []), text]

    def _close(self, state: str) -> None:
        self._run.summary["state"] = state
        for name, value in self.last.items():
            self._run.summary[name] = value
        self._run.finish(exit_code=0 if state == "finished" else 1)


def _is_logged_in(wandb: Any) -> bool:
    """Whether W&B has a key; asks nobody."""
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # an earlier version
        return bool(wandb.api.api_key)
