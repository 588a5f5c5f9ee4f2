"""The features that a backbone gives for a data set: what every measure in this folder starts from."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from superself.basics.random import preserve_random_state
from superself.data import BatchLoader, Images, Preprocessing, SequentialBatches, open_images
from superself.data.batch import are_classes
from superself.networks import pool_features
from superself.networks.modes import device_of, evaluation_mode


class Features(NamedTuple):
    """The features of a data set, in its order: features (N, D) float32, labels (N,) or None, both on the CPU."""

    features: Tensor
    labels: Tensor | None


def features(
    backbone: nn.Module,
    dataset: Any,
    *,
    batch_size: int = 256,
    preprocessing: Preprocessing | None = None,
    device: torch.device | str | None = None,
) -> Features:
    """The features of every image of ``dataset``, in its order and with the labels where it has them.

    The backbone runs in evaluation mode and in float32, without gradients; its modes, its statistics and the random
    state are afterwards what they were before.

    Args:
        dataset: anything that ``open_images`` takes, at the size of the preprocessing; an ``Images`` is taken as it is.
        preprocessing: what the backbone expects; None: the one it was trained with (``backbone.preprocessing``), and
            for a backbone without one the mean and deviation of ``dataset``.
        device: where the backbone is; None: where its first parameter is.
    Raises:
        ValueError: if the images have other channels than the preprocessing, or a feature is not finite.
    """
    preprocessing = preprocessing or getattr(backbone, "preprocessing", None)
    images = open_at_size(dataset, preprocessing)
    if len(images) == 0:
        raise ValueError("there are 0 images to take features of; pass a data set with at least one.")
    preprocessing = preprocessing or Preprocessing.of(images)
    if images.shape[0] != preprocessing.shape[0]:
        raise ValueError(
            f"the images have {images.shape[0]} channels and the backbone was made for {preprocessing.shape[0]}; "
            f"give images of {preprocessing.shape[0]} channels."
        )
    device = torch.device(device or device_of(backbone))
    outputs, targets = [], []
    # Items that are drawn at random are the same at every call.
    with (
        preserve_random_state(seed=0),
        torch.no_grad(),
        evaluation_mode(backbone),
        torch.autocast(device.type, enabled=False),
    ):
        labelled = has_labels(images)
        batches = SequentialBatches(len(images), batch_size)
        for data in BatchLoader(images, batches):
            output = backbone(preprocessing(data.images.to(device)))
            outputs.append(pool_features(output).float().cpu())  # (B, D)
            targets.append(data.target)
    found = torch.cat(outputs)  # (N, D)
    broken = len(found) - int(found.isfinite().all(dim=1).sum())
    if broken:
        raise ValueError(
            f"the features of {broken} of {len(found)} images are not finite; train anew with a smaller learning rate, "
            "or load an earlier checkpoint."
        )
    return Features(found, torch.cat(targets) if labelled else None)


def open_at_size(dataset: Any, preprocessing: Preprocessing | None) -> Images:
    """``open_images`` with the image size of the preprocessing; what is open already keeps its own."""
    if preprocessing is None or isinstance(dataset, Images):
        return open_images(dataset)
    return open_images(dataset, image_size=preprocessing.shape[1:])


def has_labels(images: Images) -> bool:
    """Whether the images come with labels: of some sources only an item can tell."""
    return are_classes(images.batch([0]).target)
