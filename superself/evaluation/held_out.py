"""The loss of a method on images that it was not trained on."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from superself.basics.random import preserve_random_state
from superself.basics.validate import require_count
from superself.data import Batch, BatchLoader, Images
from superself.data.sources import evenly_spaced
from superself.evaluation.evaluator import Evaluator
from superself.evaluation.extraction import open_at_size
from superself.evaluation.subject import Subject
from superself.networks import MemoryBank
from superself.networks.modes import evaluation_mode

STRUCTURE = ("_parameters", "_buffers", "_modules")  # attributes of a module that hold others


class HeldOut(NamedTuple):
    """The loss of a method on images, its chance level there (None where there is none), and what else the method notes."""

    loss: float
    chance: float | None
    noted: dict[str, float]


def held_out_loss(
    supervisor: Any,
    images: Images,
    count: int = 512,
    batch_size: int | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> HeldOut:
    """The method's loss on other images than those trained on: in evaluation mode, over whole batches.

    The rows of a memory bank belong to the images of the training set. For this measurement each bank is replaced by one for
    these images, filled with the embeddings that the trained network gives for them. Losses that compare the images of a
    batch depend on its size, so compare values of the same ``batch_size``. Views are drawn with the same random numbers at
    every call. Afterwards everything is as before: weights, modes, random states, queues, banks, and the values of the run.

    The value does not exist where the loss is about the training images themselves (``knows_its_images``: ExemplarNet,
    DeepCluster, DeepClusterV2), whose classes or clusters other images do not have. For these pass ``supervisor.images``:
    the loss is then that of new views of the training images.

    Args:
        supervisor: built, and trained or loaded.
        images: of the size that the supervisor's own images are stored at.
        count: images that are measured, spread evenly over the data set.
        batch_size: images per batch; a last batch of fewer is left out if there are others. None takes that of the last run,
            and 128 without one.
        transform: applied to the stored images (B, C, H, W) first, for example to take their colours away.
    Raises:
        ValueError: if the method has no such value for other images.
    """
    require_count("count", count, "is the number of images that are measured")
    if supervisor.knows_its_images and images is not supervisor.images:
        raise ValueError(
            f"the loss of {type(supervisor).__name__} is about its own training images, so other images have none; leave out "
            "testdata=, or pass supervisor.images to held_out_loss() to measure it on new views of these."
        )
    if batch_size is None:
        batch_size = 128 if supervisor.run is None else supervisor.run.settings.batch_size
    places = _places(supervisor, images, count)
    banks = {name: bank for name, bank in supervisor.named_children() if isinstance(bank, MemoryBank)}
    first = 0 if banks else None if images is supervisor.images else len(supervisor.images)
    batches = _Batches(supervisor, images, places, min(batch_size, len(places)), transform, first)
    autocast = contextlib.nullcontext if supervisor.run is None else supervisor.run.autocast
    noted: dict[str, list[float]] = {}
    with torch.no_grad(), preserve_random_state(0, supervisor.generator), _restored(supervisor):
        for name, bank in banks.items():
            fresh = MemoryBank(len(places), bank.features.shape[1], momentum=0.0)
            setattr(supervisor, name, fresh.to(supervisor.device))
        with evaluation_mode(supervisor), autocast():
            for batch in batches if banks else ():  # every image gets its row
                supervisor._forward(batch)
                for name in banks:
                    getattr(supervisor, name).commit()
            supervisor.note = lambda name, value: noted.setdefault(name, []).append(_mean(value))
            losses = [supervisor._forward(batch).item() for batch in batches if len(batch) == batches.size]
        chance = supervisor.chance_loss  # depends on the number of rows of these banks
    return HeldOut(statistics.mean(losses), chance, {name: statistics.mean(values) for name, values in noted.items()})


class HeldOutLoss(Evaluator):
    """The method's loss on images that it is not trained on: "held_out_loss". It needs no labels.

    A loss that falls on the training images and rises here means overfitting to these. It compares checkpoints of one method
    with the same settings; losses of different methods, or of other augmentations, are different quantities.

    Args:
        testdata: anything that ``open_images`` takes; opened at the size of the training images.
        every: see Evaluator.
    Raises:
        ValueError: when opened for a backbone without a method.
    """

    name = "held_out_loss"
    higher_is_better: ClassVar[bool | None] = False

    def __init__(self, testdata: Any, every: int = 1) -> None:
        super().__init__(every)
        self.testdata = testdata
        self.images: Images | None = None

    def open(self, subject: Subject) -> None:
        """Opens the images at the size of the training images, and checks that there is a method."""
        if subject.held_out_loss is None:
            raise ValueError(
                "HeldOutLoss needs the method, and this backbone has none; pass it to supervise() or supervisor.evaluate()."
            )
        known = subject.preprocessing
        size = subject.images.shape[1:] if subject.images is not None else known and known.shape[1:]
        self.images = open_at_size(self.testdata, size, known and known.reading)

    def evaluate(self, subject: Subject) -> dict[str, float]:
        """The value."""
        if self.images is None:
            self.open(subject)
        return {"held_out_loss": float(subject.held_out_loss(self.images))}


class _Batches:
    """Batches of chosen images as the supervisor gets them, the same at every pass; only the last may have fewer.

    The index of other images than the supervisor's own begins at 0 where there is a bank with a row for each of them, and
    otherwise after the supervisor's, so that no row of a queue counts as the same image.
    """

    def __init__(
        self,
        supervisor: Any,
        images: Images,
        places: Tensor,
        size: int,
        transform: Callable[[Tensor], Tensor] | None,
        first: int | None,
    ) -> None:
        self.supervisor, self.transform, self.size, self.first = supervisor, transform, size, first
        self.loader = BatchLoader(images, places.split(size), collate_fn=supervisor.collate_fn)

    def __iter__(self) -> Iterator[Batch]:
        seen = 0
        for data in self.loader:
            data = data.to(self.supervisor.device)
            if self.transform is not None:
                views = None if data.views is None else [self.transform(view) for view in data.views]
                data = replace(data, images=self.transform(data.images), views=views)
            if self.first is not None:
                start = self.first + seen
                data = replace(data, index=torch.arange(start, start + len(data), device=self.supervisor.device))
            seen += len(data)
            yield data


def _places(supervisor: Any, images: Images, count: int) -> Tensor:
    """Which images are measured, spread evenly; of its own images, a method that knows them trains on some only."""
    places = supervisor._sampler(1, shuffle=False).places if supervisor.knows_its_images else None
    places = torch.arange(len(images)) if places is None else places
    return places[evenly_spaced(count, len(places))]


def _mean(value: Tensor | float) -> float:
    return torch.as_tensor(value).double().mean().item()


@contextlib.contextmanager
def _restored(supervisor: nn.Module) -> Iterator[None]:
    """What ``_forward`` leaves at the supervisor and its modules is put back at the end: banks, queues' pending rows, notes."""
    before = [(m, dict(vars(m)), {kind: dict(vars(m)[kind]) for kind in STRUCTURE}) for m in supervisor.modules()]
    try:
        yield
    finally:
        for module, attributes, structure in before:
            vars(module).clear()
            vars(module).update(attributes)
            for kind in STRUCTURE:
                vars(module)[kind].clear()
                vars(module)[kind].update(structure[kind])
