"""LabelSupervisor: trains a head on a frozen backbone (linear probe), or both together (fine-tuning)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from superself.basics.distributed import mean, world_size
from superself.data import Batch, Images, Reading
from superself.data.batch import are_classes
from superself.evaluation.extraction import open_at_size, read_in_order
from superself.networks import CombinedNet
from superself.networks.modes import evaluation_mode
from superself.supervisor import Supervisor

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options


class LabelSupervisor(Supervisor):
    """Trains on labelled images: a head on a frozen backbone, or head and backbone together.

    L = cross-entropy of the class, unless another ``loss`` is given. A frozen backbone runs without gradients and in
    evaluation mode, and is not in the optimizer, so neither its weights nor its batch statistics change. After ``supervise()``
    every module is in the mode it was in before, and every parameter has the ``requires_grad`` it had.

    Source: the two protocols of transfer, for example Zhang et al., arXiv:1603.08511 (linear) and fine-tuning.
    Deviations: none.
    Args:
        model: CombinedNet of a backbone, for example ``supervisor.get_backbone()``, and a head with one logit per class.
        dataset: labelled: "imagefolder:PATH", or a torch Dataset of (image, label); opened at the image size that the
            backbone was trained on, unless ``image_size`` is given.
        loss: of (predictions (B, K), labels (B, ...)): None for the cross-entropy, ``multilabel_loss`` for multi-hot labels
            with NaN for unknown ones, ``nn.MSELoss()`` for vectors.
        freeze: False trains the backbone too (fine-tuning; a tenth of the learning rate is a good start).
    Shape:
        data: images (B, C, H, W) and labels (B, ...) -> loss ().
    Raises:
        ValueError: if the data set has no labels, or all parameters of a backbone to fine-tune have requires_grad=False.
    """

    loss_meaning = "cross-entropy of the class; 0 is perfect"

    def __init__(
        self,
        model: CombinedNet | None = None,
        dataset: Any = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        *,
        freeze: bool = True,
        **options: Unpack[Options],
    ) -> None:
        known = getattr(model.backbone, "preprocessing", None) if model is not None else None
        if known is not None:
            options.setdefault("sobel", known.sobel)
            if not isinstance(dataset, Images):
                options.setdefault("image_size", known.shape[1:])
                if known.reading is not None and not options.keys() & known.reading.options().keys():
                    options.update(known.reading.options())
        super().__init__(model, dataset, loss, collate_fn, **options)
        self.freeze = freeze
        self.trains_backbone = not freeze
        if known is not None and isinstance(dataset, Images):
            self.preprocessing = known.for_images(dataset)
        elif known is not None:
            steps = options.get("norm"), options.get("num_channels"), options.get("single_channel", False)
            self.preprocessing = replace(known, reading=Reading.of(*steps), raw=False)

    def _build(self) -> None:
        self.loss = self.given.loss or nn.CrossEntropyLoss()

    def _forward(self, data: Batch) -> Tensor:
        _, labels = data
        (images,) = self.views(data)  # (B, C, H, W)
        if self.freeze:
            with torch.no_grad(), evaluation_mode(self.model.backbone):
                features = self.model.features(images)  # (B, D)
        else:
            features = self.model.features(images)
        predictions = self.model.predictor(features).float()  # (B, K)
        if isinstance(labels, Tensor) and are_classes(labels):
            self.note("accuracy", (predictions.argmax(1) == labels).float())
        return self.loss(predictions, labels)

    @property
    def chance_loss(self) -> float | None:
        """ln K for K classes, where their number is known."""
        return math.log(len(self.images.classes)) if self.images.classes else None

    @functools.wraps(Supervisor.supervise)
    def supervise(self, *args: Any, **kwargs: Any) -> LabelSupervisor:
        self._require_model()
        flags = [parameter.requires_grad for parameter in self.model.backbone.parameters()]
        if not self.freeze and flags and not any(flags):
            raise ValueError(
                f"freeze=False trains the backbone, but all of its {len(flags)} parameters have requires_grad=False; call "
                "backbone.requires_grad_(True) first, or pass freeze=True."
            )
        modes = {module: module.training for module in self.modules()}
        try:
            return super().supervise(*args, **kwargs)
        finally:
            for module, training in modes.items():
                module.training = training

    def _is_trained(self, name: str) -> bool:
        """A frozen backbone is left out of the optimizer; its flags stay as they are."""
        return not (self.freeze and name.startswith("model.backbone."))

    @torch.no_grad()
    def accuracy(self, dataset: Any, batch_size: int = 256) -> float:
        """Share of correct predictions on a labelled data set, in evaluation mode; unreadable images are left out.

        For class labels (B,) a prediction is the largest logit; for multi-hot labels (B, K) it is the sign of each logit, and
        labels that are NaN are not counted.

        Raises:
            ValueError: if the labels are neither of the two.
        """
        images = open_at_size(dataset, self.preprocessing.shape[1:], self.preprocessing.reading).load()
        preprocessing = self.preprocessing.for_images(images)
        correct = counted = 0
        with evaluation_mode(self):
            for batch in read_in_order(images, batch_size):
                if batch.labels is None:
                    raise ValueError(
                        f"the data set has no labels ({images.describe()}), which are needed to measure accuracy; pass one "
                        'whose items are (image, label), or class folders as "imagefolder:PATH".'
                    )
                predictions = self.model(preprocessing(batch.images.to(self.device))).cpu()[batch.readable]
                hits = _hits(predictions, batch.labels.cpu()[batch.readable])
                correct, counted = correct + hits.sum().item(), counted + len(hits)
        return correct / counted if counted else math.nan


def multilabel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy averaged over the known labels; a batch without any gives 0.

    Shape:
        logits (B, K), labels (B, K) of 0, 1, or NaN for unknown -> scalar ().
    """
    known = ~labels.isnan()
    losses = binary_cross_entropy_with_logits(logits, labels.nan_to_num().to(logits.dtype), reduction="none")
    return (losses * known).sum() / mean(known.sum()).clamp_min(1 / world_size())


def _hits(predictions: Tensor, labels: Tensor) -> Tensor:
    """Which predictions are correct: one per image, or one per known label of multi-hot ones."""
    if labels.ndim == 1 and not labels.is_floating_point():
        return predictions.argmax(dim=1) == labels
    known = ~labels.isnan() if labels.is_floating_point() else torch.ones_like(labels, dtype=torch.bool)
    if labels.shape != predictions.shape or not ((labels == 0) | (labels == 1))[known].all():
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype} have no accuracy with {predictions.shape[1]} logits; "
            "it needs classes (B,) as integers, or multi-hot labels (B, K) of 0, 1 and NaN."
        )
    return ((predictions > 0) == (labels == 1))[known]
