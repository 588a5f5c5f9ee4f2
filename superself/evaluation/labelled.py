"""LabelledEvaluator: what the evaluators with labels have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from superself.basics.validate import require_bool, require_choice
from superself.data import Images
from superself.data.batch import are_classes
from superself.evaluation.class_names import renumbered
from superself.evaluation.classification import Classification
from superself.evaluation.evaluator import Evaluator
from superself.evaluation.extraction import Features, features, open_labelled
from superself.evaluation.subject import Subject


class LabelledEvaluator(Evaluator):
    """Trains a classifier on the features of labelled images and measures its accuracy on others.

    The backbone is frozen. The main value has the evaluator's name, for example "knn"; the whole ``Classification`` of the
    last measurement is in ``result``. Subclasses write ``classify``.

    Args:
        train: labelled images, anything that ``open_images`` takes; opened at the size of the backbone.
        test: labelled images of the same classes, on which accuracy is measured.
        top5: measure top-5 accuracy too, for example as "knn_top5"; needs more than five classes.
        pool: "mean", or "flatten" for the features at each place; see ``features``.
        every: epochs from one measurement to the next.
    """

    protocol: str = ""  # of the last measurement

    def __init__(self, train: Any, test: Any, *, top5: bool = False, pool: str = "mean", every: int = 1) -> None:
        super().__init__(every)
        require_bool("top5", top5)
        require_choice("pool", pool, ("mean", "flatten"))
        self.train, self.test, self.top5, self.pool = train, test, top5, pool
        self.result: Classification | None = None
        self._train: Images | None = None
        self._test: Images | None = None

    def open(self, subject: Subject) -> None:
        """Opens both data sets at the size of the subject.

        Raises:
            ValueError: if one of them has no class labels, or ``test`` has a class that ``train`` does not have.
        """
        self._train = _open_classes(subject, self.train, "train")
        self._test = _open_classes(subject, self.test, "test")
        renumbered(torch.empty(0, dtype=torch.int64), self._test.classes, self._train.classes)
        self.check(self._train)

    def check(self, train: Images) -> None:
        """Checks the options against the opened training images.

        Raises:
            ValueError: if they do not fit.
        """
        count = len(train.classes) if train.classes else None
        if count is None and train.labels is not None:
            count = len(train.labels.unique())
        if self.top5 and count is not None and count < 6:
            raise ValueError(f"top5=True needs at least 6 classes, and the training images have {count}; leave it out.")

    def evaluate(self, subject: Subject) -> dict[str, float]:
        """The accuracy, and the top-5 accuracy if it is wanted."""
        self.result = self.classify(*self.features(subject), accelerator_of(subject))
        self.protocol = self.result.protocol
        values = {self.name: self.result.top1}
        return values | {f"{self.name}_top5": self.result.top5} if self.top5 else values

    def features(self, subject: Subject) -> tuple[Features, Features]:
        """The features of the training and the test images."""
        if self._train is None or self._test is None:
            raise RuntimeError(
                f"{type(self).__name__} has not opened its images; call open(subject) before evaluate(subject)."
            )
        if self.pool == "mean":
            return subject.features(self._train), subject.features(self._test)
        known = subject.preprocessing
        train, test = (
            features(subject.backbone, images, preprocessing=known, pool=self.pool)
            for images in (self._train, self._test)
        )
        return train, test

    def classify(self, train: Features, test: Features, device: torch.device | None) -> Classification:
        """The classification of the test images; ``device`` is where to compute, or None."""
        raise NotImplementedError(f"{type(self).__name__} defines no classify(train, test, device) -> Classification.")


def accelerator_of(subject: Subject) -> torch.device | None:
    """The device of the backbone where it makes the maths faster, or None."""
    return subject.device if subject.device.type == "cuda" else None


def _open_classes(subject: Subject, dataset: Any, role: str) -> Images:
    images = open_labelled(subject.open(dataset), None, role)
    target = images.batch([0]).target
    if not (isinstance(target, Tensor) and are_classes(target)):
        raise ValueError(
            f"{role} has targets {tuple(target.shape[1:])} of {target.dtype}, and an accuracy needs one class per image; "
            "pass class folders, or integer labels (N,)."
        )
    return images
