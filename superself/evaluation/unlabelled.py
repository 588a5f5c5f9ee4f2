"""What measures without labels share: which images they take, and the features of changed copies and of views of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from superself.augment import recipe
from superself.basics.random import preserve_random_state
from superself.basics.validate import require_count
from superself.data import Images, Preprocessing
from superself.data.sources import evenly_spaced
from superself.evaluation.evaluator import Evaluator
from superself.evaluation.subject import Subject
from superself.networks import pool_features
from superself.networks.modes import device_of, evaluation_mode

BATCH = 256  # images at once


class UnlabelledEvaluator(Evaluator):
    """Base of the evaluators that need images and no labels.

    Args:
        dataset: anything that ``open_images`` takes; None takes the subject's own images.
        count: images that are measured, spread evenly over the data set; always the same ones.
        every: see Evaluator.
    Raises:
        ValueError: when opened without images.
    """

    def __init__(self, dataset: Any = None, count: int = 2000, every: int = 1) -> None:
        super().__init__(every)
        require_count("count", count, "is the number of images that are measured", minimum=2)
        self.dataset, self.count = dataset, count
        self.images: Images | None = None

    def open(self, subject: Subject) -> None:
        """Opens the data set at the size of the subject."""
        if self.dataset is None and subject.images is None:
            raise ValueError(
                f"{type(self).__name__} has no images: the subject was made without, and no data set was given; pass "
                f'{type(self).__name__}("my_images").'
            )
        self.images = subject.open(subject.images if self.dataset is None else self.dataset)

    def opened(self, subject: Subject) -> Images:
        """The images, opened now if ``open`` was not called."""
        if self.images is None:
            self.open(subject)
        return self.images


def chosen_images(subject: Subject, images: Images, count: int) -> Iterator[Tensor]:
    """Up to ``count`` images in batches (B, C, H, W), spread evenly over the data set; unreadable ones are left out.

    Steps of the subject that belong to reading, and were not taken when the images were read, are taken here, so that
    transforms get what they get in training.
    """
    reading = subject.preprocessing.reading if images.reading is None else None
    for places in torch.tensor(evenly_spaced(count, len(images))).split(BATCH):
        batch = images.batch(places)
        images.report_broken(batch.broken)
        readable = (batch.index == places).to(batch.images.device)
        if readable.any():
            yield batch.images[readable] if reading is None else reading(batch.images[readable])


def as_subject(given: Subject | nn.Module, preprocessing: Preprocessing | None = None) -> Subject:
    """The subject itself, or one for a backbone."""
    return given if isinstance(given, Subject) else Subject(given, preprocessing)


@contextlib.contextmanager
def measuring(subject: Subject, images: Images) -> Iterator[Callable[[Tensor], Tensor]]:
    """Inside, the backbone is in evaluation mode and float32, without gradients; then everything is as it was before.

    Args:
        subject: opened; its preprocessing is known.
        images: where the batches come from.
    Yields:
        A function from what ``chosen_images`` yields (B, C, h, w), or changed copies of it, to features (B, D) on the CPU.
    """
    backbone, preprocessing = subject.backbone, subject.preprocessing.for_images(images).for_raw_images(False)
    device = device_of(backbone)

    def features_of(batch: Tensor) -> Tensor:
        return pool_features(backbone(preprocessing(batch.to(device)))).float().cpu()

    with (
        preserve_random_state(seed=subject.seed),
        torch.no_grad(),
        evaluation_mode(backbone),
        torch.autocast(device.type, enabled=False),
    ):
        yield features_of


def view_features(
    subject: Subject | nn.Module, dataset: Any, views: int = 2, count: int = 2000, augment: Any = None
) -> Tensor:
    """Features of several random views of each image; the same at every call.

    Args:
        subject: a backbone, or a subject.
        dataset: anything that ``open_images`` takes.
        views: of each image.
        count: images, spread evenly over the data set; unreadable ones are left out.
        augment: what makes the views: the name of a recipe or a transform; None takes the subject's own views, or "simclr"
            if it has none. Results of different methods are only comparable with the same ``augment``.
    Shape:
        -> (N, views, D) float32 on the CPU.
    Raises:
        ValueError: if an image or a feature is not usable, or ``augment`` is unknown.
    """
    require_count("views", views, "is the number of views of each image")
    subject = as_subject(subject)
    images = subject.open(dataset)
    with measuring(subject, images) as features_of:
        make = _view_maker(subject, augment)
        found = [_views_of(batch, make, views, features_of) for batch in chosen_images(subject, images, count)]
    if not found:
        raise ValueError("none of the chosen images can be read; pass a data set of which most images can be read.")
    return require_finite_features(torch.cat(found))


def require_finite_features(features: Tensor) -> Tensor:
    """The features (N, ...) themselves.

    Raises:
        ValueError: if one is not finite.
    """
    wrong = int((~features.flatten(1).isfinite().all(dim=1)).sum())
    if wrong:
        raise ValueError(
            f"the features of {wrong} of {len(features)} images are not finite; train again with a smaller learning rate, "
            "or load an earlier checkpoint."
        )
    return features


def _view_maker(subject: Subject, augment: Any) -> Callable[[Tensor], list[Tensor]]:
    if augment is None and subject.views is not None:
        return subject.views
    transform = recipe("simclr" if augment is None else augment, subject.preprocessing.shape[1:])

    def make(images: Tensor) -> list[Tensor]:
        made = transform(images)
        return [made] if isinstance(made, Tensor) else list(made)

    return make


def _views_of(
    images: Tensor, make: Callable[[Tensor], list[Tensor]], views: int, features_of: Callable[[Tensor], Tensor]
) -> Tensor:
    """Features (B, views, D); of methods with smaller additional views, those of the first view's size count."""
    rows: list[Tensor] = []
    while len(rows) < views:
        first, *others = make(images)
        same = [first, *(view for view in others if view.shape == first.shape)]
        rows += [features_of(view) for view in same[: views - len(rows)]]
    return torch.stack(rows, 1)
