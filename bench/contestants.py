"""Who is timed: our loop, its limit, and lightly's. Each is a function that runs in a process of its own (see turns)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.turns import Meter
from superself import Supervisor
from superself.algorithms import ALGORITHMS
from superself.data import Preprocessing, open_images
from superself.networks import build_backbone

FOREVER = 10**6  # epochs, or steps


@dataclass(frozen=True)
class Setting:
    """What all contestants have in common; ``images`` is a file that holds the tensor (N, C, H, W) uint8."""

    algorithm: str
    images: str
    backbone: str
    batch_size: int
    device: str
    lr: float = 1e-3

    def load(self) -> Tensor:
        """The images."""
        return torch.load(self.images, weights_only=True)


def hooked(algorithm: type[Supervisor]) -> type[Supervisor]:
    """The algorithm, which calls ``after_step(last)`` after every step; ``last`` of its epoch."""

    class Hooked(algorithm):
        after_step: Callable[[bool], None]

        def _update(self, loss: Tensor, optimizer: Any, lr_scheduler: Any) -> None:
            super()._update(loss, optimizer, lr_scheduler)
            self.after_step((self.step + 1) % self.run.steps == 0)

    return Hooked


def ours(meter: Meter, setting: Setting) -> None:
    """``supervise()`` on images in memory, as a user calls it."""
    train(hooked(ALGORITHMS[setting.algorithm]), meter, setting)


def limit(meter: Meter, setting: Setting) -> None:
    """The same networks, loss, optimiser, averages, precision and memory format on random views that are already there."""

    class Limit(ALGORITHMS[setting.algorithm]):
        def _epochs(self, epochs: int, train_loader: Any, optimizer: Any, lr_scheduler: Any) -> None:
            self.train()
            batch = self._to_device(next(iter(train_loader)))
            self.views, self.preprocessing = Ready(self.views(batch[0], self.generator)), as_it_is
            while True:
                with self.run.autocast():
                    loss = self._forward(batch)
                self._update(loss, optimizer, lr_scheduler)
                self.after_step(False)

    train(Limit, meter, setting)


def train(algorithm: type[Supervisor], meter: Meter, setting: Setting) -> None:
    """Runs ``supervise()`` until the meter ends it."""
    supervisor = algorithm(setting.load(), backbone=setting.backbone, seed=0).to(setting.device)
    supervisor.after_step = meter.tick
    with tempfile.TemporaryDirectory() as folder:
        supervisor.supervise(
            lr=setting.lr,
            epochs=FOREVER,
            batch_size=setting.batch_size,
            name=Path(folder) / "run",
            progress=False,
        )


def lightly(meter: Meter, setting: Setting, bfloat16: bool) -> None:
    """lightly's modules, views and loop on the same images, with a worker a core."""
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


class Ready(nn.Module):
    """Random numbers in the shape of the views, made once."""

    def __init__(self, views: list[Tensor]) -> None:
        super().__init__()
        self.views = [torch.randn_like(view) for view in views]  # as they lie in memory: channels last or not

    def forward(self, images: Tensor, generator: torch.Generator) -> list[Tensor]:
        """The same ones for every batch."""
        return self.views


def as_it_is(images: Tensor) -> Tensor:
    """In place of the preprocessing."""
    return images
