"""Training for the comparison: methods without labels, and the same backbone with labels."""

from __future__ import annotations

import contextlib
import copy
import math
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from superself.algorithms import create
from superself.basics.output import print_line
from superself.comparison.budget import Budget, Plan, plan, random_part
from superself.data import Images
from superself.data.sources import TensorSource
from superself.labels import LabelSupervisor
from superself.suggestions import seconds_per_step
from superself.supervisor import Supervisor
from superself.training.hyper_parameters import OF_THE_DATA

LR = 1e-3
BATCH_SIZE = 64  # at most half of the images
SLOWER = 0.1  # the learning rate of a backbone that is fine-tuned, as a fraction of that of its head
AUGMENT = "resized-crop-flip"  # of images with labels


@dataclass
class Trainer:
    """Trains networks with one budget and one set of settings.

    Args:
        budget: of each run; None if nothing is trained.
        settings: of ``supervise``, which take precedence over those of ``suggest``.
        backbone: of the methods, unless their arguments name another one.
        store: a folder that keeps the runs, or None.
        device: where networks are trained; None for the CPU.
        progress: print what is trained, and the progress of each run.
    """

    budget: Budget | None
    settings: dict[str, Any] = field(default_factory=dict)
    backbone: str | nn.Module = "resnet18"
    store: Path | None = None
    device: Any = None
    progress: bool = True

    def __post_init__(self) -> None:
        refused = {"epochs", "name", "seed", "resume", "pretrained"} & self.settings.keys()
        if refused:
            raise ValueError(
                f"settings has {', '.join(sorted(refused))}, which compare() sets itself; use budget=, store= and seeds= instead."
            )
        self.used_batch_size: int | None = None
        self.plans: dict[str, Plan] = {}  # by the name of the row, so that every seed gets the same

    @contextlib.contextmanager
    def folder(self) -> Iterator[None]:
        """Inside, runs are stored: in ``store``, or in a temporary folder."""
        if self.store is not None:
            yield
            return
        with tempfile.TemporaryDirectory() as folder:
            self.store = Path(folder)
            try:
                yield
            finally:
                self.store = None

    def make(self, method: str, images: Images, seed: int, arguments: dict[str, Any]) -> Supervisor:
        """A supervisor of a method with random weights."""
        arguments = {name: value for name, value in arguments.items() if name not in OF_THE_DATA}
        backbone = copy.deepcopy(arguments.pop("backbone", self.backbone))
        return create(method, images, **{"backbone": backbone, "seed": seed, **copy.deepcopy(arguments)})

    def pretrain(
        self, row: str, method: str, images: Images, seed: int, arguments: dict[str, Any]
    ) -> tuple[nn.Module, dict[str, float]]:
        """Trains a method on images whose labels it does not get: the backbone, and what is known about its run."""
        bare = without_labels(images)
        planned = self._plan(row, lambda part: self.make(method, part, seed, arguments), bare)
        supervisor = self.make(method, random_part(bare, planned.images), seed, arguments)
        return supervisor.get_backbone(), self._supervise(supervisor, row, seed, planned)

    def with_labels(
        self, row: str, backbone: nn.Module, images: Images, seed: int, from_scratch: bool
    ) -> tuple[LabelSupervisor, dict[str, float]]:
        """Trains a copy of a backbone together with a head, with the labels.

        Args:
            row: its name in the table.
            backbone: stays as it is.
            images: labelled.
            seed: of the head, the order and the views.
            from_scratch: the backbone learns as fast as the head, and not at a tenth of its rate.
        """
        lr = self.settings.get("lr", LR)
        options = {"freeze": False, "backbone_lr": None if from_scratch else SLOWER * lr, "augment": AUGMENT}

        def make(part: Images) -> LabelSupervisor:
            network = copy.deepcopy(backbone).requires_grad_(True)
            return LabelSupervisor(backbone=network, dataset=part, seed=seed, classes=classes, **options)

        classes = images.classes or int(images.load().targets.max()) + 1
        planned = self._plan(row, make, images)
        supervisor = make(random_part(images, planned.images))
        return supervisor, self._supervise(supervisor, row, seed, planned)

    def describe(self) -> list[str]:
        """What was trained, in at most one sentence."""
        if not self.plans:
            return []
        given = {"batch_size": self.used_batch_size, "lr": LR, "lr_scheduler": "warmup_cosine", **self.settings}
        rows = ", ".join(f"{row} {self._in_epochs(found)}" for row, found in self.plans.items())
        settings = ", ".join(f"{name}={value!r}" for name, value in given.items())
        return [f"Trained here, {self.budget} a run: {rows}; {settings}."]

    @staticmethod
    def _in_epochs(found: Plan) -> str:
        return f"{found.epochs} {'epoch' if found.epochs == 1 else 'epochs'} of {found.images} images"

    def batch_size(self, images: Images) -> int:
        """Images of a step: as passed, or 64 and at most half of them."""
        return self.settings.get("batch_size", min(BATCH_SIZE, 2 ** int(math.log2(max(4, len(images) // 2)))))

    def _plan(self, row: str, make: Any, images: Images) -> Plan:
        if row not in self.plans:
            batch_size, budget = self.batch_size(images), self.budget
            if budget.seconds is None:
                self.plans[row] = Plan(budget.epochs, len(images))
            else:
                few = random_part(images, min(len(images), 2 * batch_size))
                seconds = seconds_per_step(lambda: make(few), batch_size, self.device)
                all_steps = len(make(images)._sampler(batch_size, shuffle=False))  # ExemplarNet trains on a part
                used = min(len(images), all_steps * batch_size)
                self.plans[row] = plan(budget.seconds, seconds, 0.0, used, batch_size)
                if self.plans[row].images == used:
                    self.plans[row] = Plan(self.plans[row].epochs, len(images))
        return self.plans[row]

    def _supervise(self, supervisor: Supervisor, row: str, seed: int, planned: Plan) -> dict[str, float]:
        """Trains, and returns minutes, images seen, and the peak of an accelerator's memory in bytes."""
        images = supervisor.images
        self.used_batch_size = self.batch_size(images)
        settings = {"lr": LR, "lr_scheduler": "warmup_cosine", "batch_size": self.batch_size(images), **self.settings}
        if self.device is not None:
            supervisor.to(self.device)
        measured = supervisor.device.type == "cuda"
        if measured:
            torch.cuda.reset_peak_memory_stats(supervisor.device)
        if self.progress:
            print_line(f"compare: {row}, seed {seed}: {self._in_epochs(planned)}")
        name = self.store / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', row).strip('-.') or 'run'}-{seed}"
        began = time.perf_counter()
        supervisor.supervise(**{"progress": self.progress, **settings}, epochs=planned.epochs, name=name)
        facts = {
            "minutes": (time.perf_counter() - began) / 60,
            "images_seen": supervisor.step * settings["batch_size"],
        }
        if measured:
            facts["peak_bytes"] = torch.cuda.max_memory_allocated(supervisor.device)
        return facts


def without_labels(images: Images) -> Images:
    """The same images without classes and labels, in memory if they fit."""
    bare = copy.copy(images.load())
    bare.targets = bare.classes = None
    if isinstance(bare.source, TensorSource):
        bare.source = copy.copy(bare.source)
        bare.source.targets = bare.source.classes = None
    return bare
