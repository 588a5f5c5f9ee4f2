"""The rotation proxy: how well a linear classifier tells from the features which way up an image is."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from superself.basics.validate import require_fraction
from superself.evaluation.extraction import Features
from superself.evaluation.linear import linear_accuracy
from superself.evaluation.subject import Subject
from superself.evaluation.unlabelled import (
    UnlabelledEvaluator,
    as_subject,
    chosen_images,
    measuring,
    require_finite_features,
)

REGULARISATIONS = (1e-3, 1e-2, 1e-1, 1.0)  # of the linear classifier
ROTATIONS = 4  # by 0, 90, 180 and 270 degrees


def rotated_features(subject: Subject | nn.Module, dataset: Any, count: int = 2000) -> Tensor:
    """Features of images rotated by 0, 90, 180 and 270 degrees, counter-clockwise.

    Images that are not square are cropped to the square in their middle. Rotations only move pixels.

    Args:
        subject: a backbone, or a subject.
        dataset: anything that ``open_images`` takes.
        count: images, spread evenly over the data set; unreadable ones are left out.
    Shape:
        -> (N, 4, D) float32 on the CPU.
    Raises:
        ValueError: if a feature is not finite.
    """
    subject = as_subject(subject)
    images, rows = subject.open(dataset), []
    with measuring(subject, images) as features_of:
        for batch in chosen_images(subject, images, count):
            side = min(batch.shape[2:])
            top, left = ((length - side) // 2 for length in batch.shape[2:])
            square = batch[:, :, top : top + side, left : left + side]
            rows.append(torch.stack([features_of(square.rot90(k, dims=(2, 3))) for k in range(ROTATIONS)], 1))
    return require_finite_features(torch.cat(rows))


def rotation_accuracy(rotated: Tensor, C: float | None = None, held_out: float = 0.5, seed: int = 0) -> float:
    """The fraction of held-out rotated images whose rotation a linear classifier finds; chance level: 0.25.

    A fixed random part of the images is held out, each with all its rotations: otherwise the classifier would see the
    image that it is asked about. It is ``linear_accuracy`` with the rotation as the class. High accuracy means that the
    features hold the layout of objects and scenes; it means little for images without an upright position (textures,
    microscopy, aerial views), and for methods that train on rotations.

    Source: Reed et al., Evaluating Self-Supervised Pretraining Without Using Labels, arXiv:2009.07724.
    Deviations: features without augmentation and logistic regression by L-BFGS, where the authors train a linear layer by
        SGD; a part of the images is held out, where they have a separate test set.
    Args:
        rotated: from ``rotated_features``.
        C: inverse strength of the penalty; None: the best of four on a fifth of the other images.
        held_out: fraction of the images that accuracy is measured on.
        seed: decides which images are held out.
    Shape:
        rotated (N, 4, D) -> number.
    Raises:
        ValueError: if there are fewer than 10 images, or the shape is another one.
    """
    require_fraction("held_out", held_out, "is the fraction of held-out images", lower_open=True, upper_open=True)
    if rotated.ndim != 3 or rotated.shape[1] != ROTATIONS or len(rotated) < 10:
        raise ValueError(
            f"the rotation proxy needs features (N, 4, D) of at least 10 images, got {tuple(rotated.shape)}; pass what "
            "rotated_features() returns."
        )
    train, test = split_images(rotated, held_out, seed)
    if C is None:
        fitted, asked = split_images(train, 0.2, seed)
        C = max(REGULARISATIONS, key=lambda C: _accuracy(fitted, asked, C))
    return _accuracy(train, test, C)


def split_images(rotated: Tensor, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """A random split of images (N, ...) into those to fit and the held-out fraction; at least one on each side."""
    order = torch.randperm(len(rotated), generator=torch.Generator().manual_seed(seed))
    count = min(max(1, round(held_out * len(rotated))), len(rotated) - 1)
    return rotated[order[count:]], rotated[order[:count]]


class RotationProxy(UnlabelledEvaluator):
    """How well a linear classifier tells by how many quarter turns an image was rotated: "rotation", chance level 0.25.

    Args:
        dataset: anything that ``open_images`` takes; None takes the subject's own images.
        count: images, spread evenly over the data set, half of which are held out; four forward passes each.
        every: see Evaluator.
    """

    name: ClassVar[str] = "rotation"

    def evaluate(self, subject: Subject) -> dict[str, float]:
        """The accuracy."""
        rotated = rotated_features(subject, self.opened(subject), self.count)
        return {"rotation": rotation_accuracy(rotated, seed=subject.seed)}


def _accuracy(train: Tensor, test: Tensor, C: float) -> float:
    parts = [Features(part.flatten(0, 1), torch.arange(ROTATIONS).repeat(len(part))) for part in (train, test)]
    return linear_accuracy(*parts, C)
