"""Subject: a backbone that is measured, with what evaluators may ask of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from superself.data import Images, Preprocessing
from superself.evaluation.extraction import Features, features, open_at_size
from superself.networks.modes import device_of


@dataclass(eq=False)
class Subject:
    """A backbone that is measured, with what is known about it; the features of a data set are computed once.

    Every evaluator gets one, so that ten measures of a data set need one pass through the network. Call ``forget`` after
    the weights have changed. Memory: 4 bytes x N x D for each data set that was asked for, until then.

    Args:
        backbone: any module that ``features`` takes.
        preprocessing: what the backbone expects; None: that of the backbone, or measured on the first data set.
        images: the images that it was trained on, or that are to be judged without labels; None if unknown.
        views: makes the views of training: images (B, C, H, W) as stored -> a list of raw views (B, C, h, w); None if the
            method has none.
        embed: from preprocessed images (B, C, h, w) to what the loss compares (B, E), or None.
        held_out_loss: from images to the loss of the method on them; None for a backbone without a method.
        seed: of whatever an evaluator draws.
    """

    backbone: nn.Module
    preprocessing: Preprocessing | None = None
    images: Images | None = None
    views: Callable[[Tensor], list[Tensor]] | None = None
    embed: Callable[[Tensor], Tensor | None] | None = None
    held_out_loss: Callable[[Images], float] | None = None
    seed: int = 0
    _cached: dict[int, tuple[Any, Features]] = field(default_factory=dict, repr=False)
    _opened: dict[Any, tuple[Any, Images]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.preprocessing is None:
            self.preprocessing = getattr(self.backbone, "preprocessing", None)

    def open(self, dataset: Any) -> Images:
        """The data set at the size and with the reading steps of the preprocessing, in memory if it fits.

        An ``Images`` is open already and keeps its size. The same data set gives the same ``Images`` at every call, so that
        evaluators share its features.
        """
        known = self.preprocessing
        key = str(dataset) if isinstance(dataset, (str, Path)) else id(dataset)
        if key not in self._opened:
            images = open_at_size(dataset, known and known.shape[1:], known and known.reading).load()
            self._opened[key] = (dataset, images)  # keeps the data set alive, so that the id stays its own
        images = self._opened[key][1]
        if known is None:
            self.preprocessing = Preprocessing.of(images)
        return images

    @property
    def opened(self) -> list[Images]:
        """The data sets that are open."""
        return [images for _, images in self._opened.values()]

    def features(self, images: Images) -> Features:
        """The features of ``images``, from the cache where they have been asked for since ``forget``."""
        if id(images) not in self._cached:
            found = features(self.backbone, images, preprocessing=self.preprocessing)
            self._cached[id(images)] = (images, found)  # keeps the images alive, so that the id stays theirs
        return self._cached[id(images)][1]

    def forget(self) -> None:
        """Drops all features: the weights have changed."""
        self._cached.clear()

    def with_backbone(self, backbone: nn.Module, **changes: Any) -> Subject:
        """The same subject with another backbone: with its own features, and with the data sets that are open already.

        Args:
            backbone: of the same kind of images.
            changes: of further arguments, such as ``held_out_loss=None``.
        """
        return replace(self, backbone=backbone, _cached={}, **changes)

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""
        return device_of(self.backbone)
