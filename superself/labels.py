"""LabelSupervisor: a trained backbone put to use, frozen or fine-tuned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from superself.data import BatchLoader, SequentialBatches
from superself.evaluation.extraction import open_at_size
from superself.networks import CombinedNet
from superself.networks.modes import evaluation_mode
from superself.supervisor import Supervisor


class LabelSupervisor(Supervisor):
    """Trains a classifier on labelled images: a head on a frozen backbone, or head and backbone together.

    L = cross-entropy of the class. A frozen backbone gets no gradient and stays in eval mode, so that its batch statistics
    do not move either.

    Source: the two protocols of transfer, for example Zhang et al., arXiv:1603.08511 (linear) and fine-tuning.
    Deviations: none.
    Args:
        model: CombinedNet of a backbone, for example ``supervisor.get_backbone()``, and a head to as many logits as classes.
        dataset: labelled: "imagefolder:PATH", or a torch Dataset of (image, label); opened with the image size that the
            backbone was trained on.
        freeze: False trains the backbone too (fine-tuning; a tenth of the learning rate is a good start).
        loss: of (logits (B, K), labels (B,)); None for the cross-entropy.
    Shape:
        data: images (B, C, H, W) and labels (B,) -> loss ().
    Raises:
        ValueError: if the data set has no labels.
    """

    loss_meaning = "cross-entropy of the class; 0 is perfect"
    with_labels = True

    def __init__(
        self,
        model: CombinedNet | None = None,
        dataset: Any = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        *,
        freeze: bool = True,
        **options: Any,
    ) -> None:
        known = getattr(model.backbone, "preprocessing", None) if model is not None else None
        if known is not None and isinstance(dataset, str):
            options.setdefault("image_size", known.shape[1:])
        super().__init__(model, dataset, loss or nn.CrossEntropyLoss(), collate_fn, **options)
        self.freeze = freeze
        self._preprocessing = known
        if freeze and model is not None:
            self.model.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> LabelSupervisor:
        """Train mode for what is trained: a frozen backbone stays in eval mode."""
        super().train(mode)
        if self.freeze and self.model is not None:
            self.model.backbone.eval()
        return self

    def _forward(self, data: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = data
        return self.loss(self.model(self.preprocessing(images)).float(), labels)

    @torch.no_grad()
    def accuracy(self, dataset: Any, batch_size: int = 256) -> float:
        """Share of the images of a labelled data set whose class is predicted; every image counts, in eval mode."""
        images = open_at_size(dataset, self.preprocessing.shape[1:]).load()
        right = 0
        with evaluation_mode(self):
            for data in BatchLoader(images, SequentialBatches(len(images), batch_size), target="label"):
                batch, labels = self._to_device(data)
                right += (self.model(self.preprocessing(batch)).argmax(dim=1) == labels).sum().item()
        return right / len(images)
