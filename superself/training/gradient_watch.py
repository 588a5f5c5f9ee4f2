"""GradientWatch: whether training reaches the backbone at all."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class GradientWatch:
    """Notes whether the first step brings the backbone a gradient.

    Args:
        supervisor: whose trained backbone is watched.
    """

    def __init__(self, supervisor: Any) -> None:
        parameters = list(supervisor.trained_backbone.parameters())
        trainable = [p for p in parameters if p.requires_grad]
        self._seen, self._hooks = False, []
        if not supervisor.trains_backbone:
            self._reason = ""
        elif not parameters:
            self._reason = "it has no parameters"
        elif not trainable:
            self._reason = "all of its parameters are frozen; call backbone.requires_grad_(True)"
        else:
            self._reason = "it is detached from the loss; look for detach(), no_grad() or another network in _forward"
        if self._reason:
            self._hooks = [p.register_hook(self._note) for p in trainable]

    def _note(self, gradient: Tensor) -> None:
        self._seen = True

    def problem(self) -> str:
        """After the first step: why training does not change the backbone, or "" if it does."""
        return f"Training does not change the backbone: {self._reason}." if self._reason and not self._seen else ""

    def remove(self) -> None:
        """Removes the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
