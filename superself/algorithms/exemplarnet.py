"""ExemplarNet: classify each distorted view by its source image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from superself.basics.validate import require_count
from superself.data import Batch, EpochSampler
from superself.losses.classification import NO_CLASS, known_cross_entropy
from superself.networks import MLP, CombinedNet, build_backbone, feature_width
from superself.supervisor import Supervisor

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options


class ExemplarNetSupervisor(Supervisor):
    """Makes each image a separate class, and classifies strongly distorted views of the images.

    L = mean over images of the cross-entropy of the predicted class; chance level: ln K for K classes. The K images are
    drawn without replacement from the seed, only they are trained on, and the choice is stored with the run. The network
    needs about a dozen epochs before it recognises an image, so short runs need few classes.

    Source: Dosovitskiy et al., Exemplar-CNN, arXiv:1406.6909.
    Deviations: a class is a whole image, not a patch with large gradients; views are drawn again at every step, not once
        per run; the head has one hidden layer of 512, with batch norm.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        n_classes: K, how many images are classes; None, or more than there are, takes all of them.
        augment: makes one view; see Supervisor.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        predictor: from features (B, D) to logits (B, K); None for an MLP.
        loss: of (logits (B, K), classes (B,)); None for the cross-entropy. An image that was not chosen, which occurs only
            in place of a broken one, has the class -1 and is ignored by the default.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if ``n_classes`` is less than 2, or ``augment`` does not make one view.
    """

    family = "patch"
    paper = ("Dosovitskiy et al. 2014", "https://arxiv.org/abs/1406.6909")
    good_for = "up to a few thousand images that differ from each other, with many epochs"
    compares_images = False
    loss_meaning = "cross-entropy of the image's identity; 0 is perfect"
    likely_causes = (
        "the run is too short for so many classes (each needs about a dozen epochs; pass a smaller n_classes)",
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "many images are nearly alike, so that they cannot be distinguished",
    )
    needs_index = True
    knows_its_images = True  # a class is an image of the data set, so the loss says nothing about other images
    dataset_state = ("classes", "model.predictor")

    def __init__(
        self,
        dataset: Any = None,
        n_classes: int | None = 8000,
        augment: Any = "exemplar",
        backbone: str | nn.Module | None = None,
        predictor: nn.Module | None = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(None, dataset, loss, collate_fn, augment=augment, **options)
        if n_classes is not None:
            require_count("n_classes", n_classes, "is the number of images that serve as classes", minimum=2)
        self.n_classes = n_classes
        self.class_count: int | None = None  # K, at most the number of images
        self.given.backbone, self.given.predictor = backbone, predictor

    def _build(self) -> None:
        self.loss = self.given.loss or known_cross_entropy
        count = max(1, len(self.images))
        self.class_count = count if self.n_classes is None else min(self.n_classes, count)
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))[: self.class_count]
        classes = torch.full((count,), NO_CLASS)
        classes[chosen] = torch.arange(self.class_count)
        self.register_buffer("classes", classes)  # (N,) of each image of the data set
        backbone = build_backbone(self.given.backbone, self.network_shape)
        predictor = self.given.predictor
        if predictor is None:
            width = feature_width(backbone, self.network_shape)
            predictor = MLP(width, self.class_count, hidden=512, norm="batch")
        self.model = CombinedNet(backbone, predictor)

    def _sampler(self, batch_size: int, shuffle: bool) -> EpochSampler:
        """Batches of the chosen images only."""
        sampler = super()._sampler(batch_size, shuffle)
        sampler.set_places((self.classes != NO_CLASS).nonzero().squeeze(1))
        return sampler

    def _forward(self, data: Batch) -> Tensor:
        (view,) = self.views(data)  # (B, C, h, w)
        logits, classes = self.model(view).float(), self.classes[data.index]  # (B, K), (B,)
        self.note("accuracy", (logits.argmax(1) == classes).sum() / (classes != NO_CLASS).sum())
        return self.loss(logits, classes)

    @property
    def chance_loss(self) -> float | None:
        """ln K: every class equally likely; None before the number of images is known."""
        return None if self.class_count is None else math.log(self.class_count)
