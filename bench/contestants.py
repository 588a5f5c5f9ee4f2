"""What is timed: our loop, its upper limit, and lightly's loop. Each is a function for a separate process (see turns)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.turns import Meter
from superself import Batch, Supervisor, Tracker
from superself.algorithms import ALGORITHMS
from superself.data import Preprocessing, open_images
from superself.networks import build_backbone

FOREVER = 10**6  # epochs, or steps


@dataclass(frozen=True)
class Setting:
    """What all contestants have in common; ``images`` is a file with the tensor (N, C, H, W) uint8."""

    algorithm: str
    images: str
    backbone: str
    batch_size: int
    device: str
    lr: float = 1e-3

    def load(self) -> Tensor:
        """The images."""
        return torch.load(self.images, weights_only=True)


class EveryStep(Tracker):
    """Calls a function after every optimizer step, where ``Tracker.step`` is called a few times a second.

    Args:
        function: called as ``function(last)``, where ``last`` says whether the step was the last one of its epoch.
    """

    def __init__(self, function: Callable[[bool], None]) -> None:
        self.function = function

    def start(self, facts: dict[str, Any]) -> None:
        """Adds a hook to the optimizer of the run."""
        run = facts["run"]  # counts a step after the hook
        run.optimizer.register_step_post_hook(lambda *_: self.function((run.step + 1) % run.steps_per_epoch == 0))


def ours(meter: Meter, setting: Setting) -> None:
    """``supervise()`` on images in memory, as a user calls it."""
    train(ALGORITHMS[setting.algorithm], meter, setting)


def limit(meter: Meter, setting: Setting) -> None:
    """The same networks, loss, optimizer, averages, precision and memory format on random views that are made once."""

    class Limit(ALGORITHMS[setting.algorithm]):
        def _init_data_optimizer(self, *arguments: Any) -> tuple[Any, torch.optim.Optimizer, Any]:
            loader, optimizer, lr_scheduler = super()._init_data_optimizer(*arguments)
            batch = next(iter(loader)).to(self.device)
            self.ready_views = [torch.randn_like(view) for view in super().views(batch)]  # in the same memory format
            return [batch] * FOREVER, optimizer, lr_scheduler  # a single epoch

        def views(self, data: Batch) -> list[Tensor]:
            return self.ready_views

    train(Limit, meter, setting)


def train(algorithm: type[Supervisor], meter: Meter, setting: Setting, **options: Any) -> None:
    """Runs ``supervise()``, with further arguments, until the meter ends it."""
    supervisor = algorithm(setting.load(), backbone=setting.backbone, seed=0).to(setting.device)
    with tempfile.TemporaryDirectory() as folder:
        supervisor.supervise(
            lr=setting.lr,
            epochs=FOREVER,
            batch_size=setting.batch_size,
            name=Path(folder) / "run",
            progress=False,
            trackers=[EveryStep(meter.tick)],
            **options,
        )


def lightly(meter: Meter, setting: Setting, bfloat16: bool) -> None:
    """lightly's modules, views and loop on the same images, with one worker per core."""
    from bench.peers import PEERS, lightly_loop

    images = setting.load()
    torch.manual_seed(0)
    peer = PEERS[setting.algorithm]
    backbone = build_backbone(setting.backbone, tuple(images.shape[1:]))
    model = peer(backbone, tuple(images.shape[1:])).to(setting.device)
    transform = peer.transform(images.shape[-1], Preprocessing.of(open_images(images)))
    arguments = model, images, transform, FOREVER, setting.batch_size, setting.lr
    for _ in lightly_loop(*arguments, bfloat16=bfloat16):
        meter.tick()
