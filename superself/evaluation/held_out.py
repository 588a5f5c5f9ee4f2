"""The loss of a method on images that it was not trained on."""

from __future__ import annotations

import contextlib
import statistics
from typing import Any, NamedTuple

import torch

from superself.basics.random import preserve_random_state
from superself.data import Images
from superself.evaluation.evaluator import Evaluator
from superself.evaluation.extraction import open_at_size
from superself.evaluation.subject import Subject
from superself.networks import MemoryBank
from superself.networks.modes import evaluation_mode


class HeldOutLoss(Evaluator):
    """Loss of the method on images that it was not trained on, in evaluation mode; "held_out_loss".

    Args:
        testdata: anything that ``open_images`` takes.
        every: epochs from one measurement to the next.
    """

    name = "held_out_loss"
    higher_is_better = False

    def __init__(self, testdata: Any, every: int = 1) -> None:
        super().__init__(every)
        self.testdata = testdata

    def open(self, subject: Subject) -> None:
        if subject.held_out_loss is None:
            raise ValueError(
                "HeldOutLoss needs the method, and this backbone has none; pass it to supervise() or supervisor.evaluate()."
            )
        known = subject.preprocessing
        size = subject.images.shape[1:] if subject.images is not None else known and known.shape[1:]
        self._images = open_at_size(self.testdata, size, known and known.reading)

    def evaluate(self, subject: Subject) -> dict[str, float]:
        return {"held_out_loss": subject.held_out_loss(self._images)}


class HeldOut(NamedTuple):
    """The loss of a method on images, and its chance level there."""

    loss: float
    chance: float | None


@torch.no_grad()
def held_out_loss(supervisor: Any, images: Images) -> HeldOut:
    """The mean loss over whole batches of ``images``, of the size of training, in evaluation mode.

    The rows of a memory bank belong to the training images: for this measurement each bank is replaced by one for
    ``images``, filled with the embeddings that the network gives for them.
    """
    if supervisor.knows_its_images and images is not supervisor.images:
        raise ValueError(
            f"the loss of {type(supervisor).__name__} is about its own training images, so other images have none; leave out "
            "testdata=."
        )
    run = supervisor.run
    batch_size = min(len(images), 32 if run is None else run.settings.batch_size)
    autocast = contextlib.nullcontext if run is None else run.autocast
    banks = {name: bank for name, bank in supervisor.named_children() if isinstance(bank, MemoryBank)}
    losses: list[float] = []
    before = {module: dict(vars(module)) for module in supervisor.modules()}
    supervisor.note = lambda name, value: None
    try:
        for name, bank in banks.items():
            fresh = MemoryBank(len(images), bank.features.shape[1], momentum=0.0)
            setattr(supervisor, name, fresh.to(supervisor.device))
        with evaluation_mode(supervisor), preserve_random_state(0, supervisor.generator):
            for filling in [True, False] if banks else [False]:
                for positions in torch.arange(len(images)).split(batch_size):
                    if len(positions) < batch_size and losses and not filling:
                        continue
                    with autocast():
                        loss = supervisor._forward(images.batch(positions).to(supervisor.device))
                    if filling:
                        for name in banks:
                            getattr(supervisor, name).commit()
                    else:
                        losses.append(loss.item())
        chance = supervisor.chance_loss
    finally:
        for name, bank in banks.items():
            setattr(supervisor, name, bank)
        for module, attributes in before.items():
            vars(module).clear()
            vars(module).update(attributes)
    return HeldOut(statistics.mean(losses), chance)
