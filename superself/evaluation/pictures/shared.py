"""What the pictures of this folder need to know: places, classes and names of images, and the untrained network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from superself.data import Images, Preprocessing
from superself.evaluation.extraction import Features, features, open_at_size
from superself.evaluation.subject import Subject
from superself.evaluation.twin import random_twin


def open_for(backbone: nn.Module, dataset: Any) -> tuple[Images, Preprocessing]:
    """The data set at the size that a backbone was trained with, and the preprocessing that it expects."""
    known = getattr(backbone, "preprocessing", None)
    images = open_at_size(dataset, known and known.shape[1:], known and known.reading)
    return images, known or Preprocessing.of(images)


def untrained_of(
    backbone: nn.Module, random: nn.Module | bool | None, images: Images, preprocessing: Preprocessing, seed: int = 0
) -> nn.Module | None:
    """The network that training is compared with.

    Args:
        backbone: the trained one.
        random: a module to use as it is; True for the same network with fresh weights, and batch norms measured on
            ``images``; None or False for none.
        images: the data set that is shown.
        preprocessing: of the trained backbone.
        seed: of the fresh weights.
    Raises:
        ValueError: if the backbone cannot be initialised again.
    """
    if random is None or random is False:
        return None
    if isinstance(random, nn.Module):
        return random
    try:
        return random_twin(backbone, images, preprocessing, seed)[0]
    except ValueError as error:
        raise ValueError(f"{error} Or pass a randomly initialised backbone as random=.") from error


def features_of_both(
    backbone: nn.Module, random: nn.Module | bool | None, images: Images, preprocessing: Preprocessing, seed: int = 0
) -> dict[str, Features]:
    """The features of the trained and, if there is one, of the untrained network, by their captions."""
    networks = {"trained": backbone}
    untrained = untrained_of(backbone, random, images, preprocessing, seed)
    if untrained is not None:
        networks["random weights"] = untrained
    return {name: features(network, images, preprocessing=preprocessing) for name, network in networks.items()}


def places_of(found: Features, images: Images) -> Tensor:
    """The places in the data set of the rows of its features, which unreadable images have no row in. Shape: (N,).

    Raises:
        ValueError: if the features are not those of ``images``.
    """
    places = [place for place, name in enumerate(images.names) if name not in found.skipped]
    if len(places) != len(found):
        raise ValueError(
            f"there are features of {len(found)} images and {len(places)} readable images; "
            "pass the data set that the features are of."
        )
    return torch.tensor(places)


def classes_of(found: Features, images: Images) -> tuple[Tensor, list[str]] | None:
    """The class of each row (N,) and the names of the classes; None without labels that are classes."""
    labels = found.labels
    if labels is None or labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        return None
    if len(labels) == 0 or labels.min() < 0:
        return None
    names = images.classes or [str(number) for number in range(int(labels.max()) + 1)]
    return labels.long(), [str(name) for name in names]


def open_for_figure(subject: Subject, dataset: Any, name: str) -> Images:
    """The images that an evaluator draws: its own, or those of the subject.

    Raises:
        ValueError: if there are none.
    """
    if dataset is None and subject.images is None:
        raise ValueError(f"{name} has no images to show; pass a data set to it, or one to the subject as images=.")
    return subject.open(subject.images if dataset is None else dataset)


def untrained_features(subject: Subject, images: Images) -> Features:
    """The features that the backbone of a subject gives with random weights."""
    network = untrained_of(subject.backbone, True, images, subject.preprocessing, subject.seed)
    return features(network, images, preprocessing=subject.preprocessing)
