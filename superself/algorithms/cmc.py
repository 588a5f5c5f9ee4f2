"""CMC: the lightness of an image finds the colours that belong to it, and the other way round."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim import Optimizer

from superself.augment import Compose, recipe
from superself.augment.recipes import crop_and_flip
from superself.losses import InfoNCE
from superself.networks import (
    MLP,
    HalvesNet,
    MemoryBank,
    PerHalf,
    build_halves,
    feature_width,
    without_normalization,
)
from superself.networks.modes import evaluation_mode
from superself.supervisor import Supervisor


class ContrastiveMultiviewCodingSupervisor(Supervisor):
    """Two encoders, one for the lightness L and one for the colours ab: each image's two embeddings find each other among many.

    L = -log exp(l_i . m_i / t) / sum_j exp(l_i . m_j / t), with l_i the embedding of the lightness of image i, m_i its row in
    the memory bank of ab and m_j also those of K others, plus the same with ab as the anchor and the bank of L, averaged over
    images. Knowing nothing gives 2 ln(K + 1). L and ab are made of the same RGB view after it was augmented; rows move after
    the step.

    Source: Tian et al., Contrastive Multiview Coding, arXiv:1906.05849, "Contrastive learning with two views"; numbers, views and
        positives out of the banks as in the authors' code.
    Deviations: a softmax over the positive and K negatives (InfoNCE) in place of its approximation by noise-contrastive
        estimation; one draw of negatives serves the whole batch; two encoders of full width; Adam (lr 1e-3, batches of 64).
        An image's row is written once an epoch, so nothing is learnt before the second; ``contrast="batch"`` learns from the
        first step, and more in short runs (about 8,000 CIFAR-10 images, small encoders: linear 41 % from 33 % at random, 39 to
        40 % with banks). Banks with the current embedding as the positive were tried and stay at chance: embeddings that keep
        moving are told from rows of the past by their age.
    Args:
        dataset: see Supervisor, as are the options that are not listed here; ``normalize`` is not taken.
        augment: name of a recipe or transform that makes one view of a batch; None for the authors' crop and flip.
        temperature: t; the authors have 0.07 for ImageNet and 0.1 for STL-10.
        momentum: share of a bank's row that is kept when its image is seen.
        negatives: K, rows drawn for each step; the whole bank where it has no more.
        features: "both", or "L" for a backbone that gives the features of the lightness alone; both halves are trained. None
            takes "both", or what LabHalves of one's own have.
        contrast: "bank", or "batch" to tell the images of a batch from each other by their present embeddings.
        backbone: None for two EfficientFeatures, a name for two of these, a pair (for L, for ab), or LabHalves.
        projector: from the outputs of the halves to two embeddings (B, E); None for the authors' linear layers with E = 128.
        loss: of (embedding (B, E), positive (B, E), rows (K, E), which of them are own (B, K)); None for InfoNCE.
    Shape:
        data: images (B, 3, H, W) and their places (B,) -> loss ().
    Raises:
        ValueError: if the images are not RGB, ``normalize`` is given, a number is out of its range or a word unknown.
        TypeError: if ``backbone`` is a single module.
    """

    family = "contrastive"
    loss_meaning = "cross-entropy of the image's other half among all halves, both directions; 0 is perfect"
    likely_causes = (
        "too few epochs: an image's rows are written once an epoch and start at random (try 20, or contrast='batch')",
        "the images have hardly any colour, or all the same colours",
        "the learning rate is too high for this optimiser (try a tenth of it)",
    )

    def __init__(
        self,
        dataset: Any = None,
        augment: str | Callable[..., Any] | None = None,
        temperature: float = 0.07,
        momentum: float = 0.5,
        negatives: int = 16384,
        features: str | None = None,
        contrast: str = "bank",
        backbone: Any = None,
        projector: nn.Module | None = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(None, dataset, loss or InfoNCE(temperature), collate_fn, **without_normalization(options))
        if negatives < 1:
            raise ValueError(f"negatives={negatives} rows leave nothing to tell an image from; pass at least 1.")
        if contrast not in ("bank", "batch"):
            raise ValueError(f"contrast={contrast!r} is unknown; pass 'bank' or 'batch'.")
        self.negatives, self.contrast = negatives, contrast
        sides = self.images.shape[1:]
        self.views = recipe(augment or Compose(crop_and_flip(sides, (0.2, 1.0))), sides, views=1)
        backbone = build_halves(backbone, self.images.shape, features)
        halves = zip((1, 2), (backbone.lightness, backbone.colour), strict=True)
        widths = [feature_width(half, (channels, *sides)) for channels, half in halves]
        if projector is None:
            projector = PerHalf(*(MLP(width, 128, layers=1) for width in widths))
        self.model = HalvesNet(backbone, projector)
        with torch.no_grad(), evaluation_mode(self.model):
            embedding, _ = self.model(torch.zeros(2, *self.images.shape, device=self.device))
        self.l_bank, self.ab_bank = (MemoryBank(len(self.images), embedding.shape[1], momentum) for _ in range(2))

    @property
    def chance_loss(self) -> float | None:
        """2 ln of the number of candidates: rows of a bank, or images of the batch; None where there are none to choose from."""
        candidates = self.ab_bank.candidates(self.negatives)
        if self.contrast == "batch":
            candidates = self.settings["batch_size"] if hasattr(self, "settings") else 1
        return 2 * math.log(candidates) if candidates > 1 else None

    def _forward(self, data: tuple[Tensor, Tensor]) -> Tensor:
        images, places = data
        (view,) = self.views(images, self.generator)  # (B, 3, H, W) in RGB
        lightness, colour = (z.float() for z in self.model(self.preprocessing(view)))  # (B, E) each
        loss = self._find(lightness, colour, self.ab_bank, places) + self._find(colour, lightness, self.l_bank, places)
        self.l_bank.remember(lightness, places)
        self.ab_bank.remember(colour, places)
        return loss

    def _find(self, anchor: Tensor, other: Tensor, bank: MemoryBank, places: Tensor) -> Tensor:
        """The embeddings of one half find those of the other half, which are in ``bank``."""
        if self.contrast == "batch":
            return self.loss(anchor, other, normalize(other, dim=1), places[:, None] == places)
        return self.loss(anchor, bank.rows(places), *bank.negatives(places, self.negatives, self.generator))

    def _update(self, loss: Tensor, optimizer: Optimizer, lr_scheduler: Any) -> None:
        super()._update(loss, optimizer, lr_scheduler)
        self.l_bank.commit()
        self.ab_bank.commit()
