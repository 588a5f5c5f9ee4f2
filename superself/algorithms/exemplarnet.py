"""ExemplarNet: which of the images is this a distorted view of?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from superself.augment import recipe
from superself.data import EpochSampler
from superself.networks import MLP, CombinedNet, build_backbone, feature_width
from superself.supervisor import Supervisor

NO_CLASS = -1  # in place of the class of an image that was not chosen


class ExemplarNetSupervisor(Supervisor):
    """Makes each image a class of its own, and classifies strongly distorted views of the images.

    L = mean over images of the cross-entropy of the predicted class; chance is ln K for K classes, 0 is perfect. The K
    images are chosen without replacement from the seed, only they are trained on, and the run keeps the choice.

    A class needs about a dozen passes before it can be told, so a short run wants few: with Adam, lr 1e-3 and batches of 64, a
    small network on CIFAR-10 learnt from twelve passes over 1000 images, and nothing from two over 3000. There, weaker
    distortions gave better features than the paper's.

    Source: Dosovitskiy et al., Exemplar-CNN, arXiv:1406.6909.
    Deviations: a class is a whole image, not a patch where the gradient is large; views are drawn anew each time, not once
        for the run; the head has one hidden layer of 512, with batch norm.
    Args:
        dataset: see Supervisor, as are the options that are not listed here.
        n_classes: K, images that become classes; None, or more than there are, takes all.
        augment: name of a recipe or transform that makes a view of each image.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        predictor: from features (B, D) to logits (B, K); None for an MLP.
        loss: of (logits (B, K), classes (B,)), where -1 is an image that was not chosen, which a run gives where it stands in
            for a broken one; None for the cross-entropy, which leaves it out.
    Shape:
        data: images (B, C, H, W) and their places (B,) -> loss ().
    Raises:
        ValueError: if ``n_classes`` is less than 2, or ``augment`` does not make one view.
    """

    family = "patch"
    loss_meaning = "cross-entropy of the image's identity; 0 is perfect"
    likely_causes = (
        "the run is too short for so many classes (a dozen passes are needed; pass a smaller n_classes)",
        "the learning rate is too high for this optimiser (try a tenth of it)",
        "many images are nearly alike, so that they cannot be told apart",
    )
    knows_its_images = True  # a class is an image of the data set: of other images the loss says nothing
    dataset_state = ("classes", "model.predictor")  # what other images begin anew

    def __init__(
        self,
        dataset: Any = None,
        n_classes: int | None = 8000,
        augment: str | Callable[..., Any] = "exemplar",
        backbone: str | nn.Module | None = None,
        predictor: nn.Module | None = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(None, dataset, loss or nn.CrossEntropyLoss(ignore_index=NO_CLASS), collate_fn, **options)
        if n_classes is not None and n_classes < 2:
            raise ValueError(
                f"n_classes={n_classes} leaves nothing to tell apart; pass 2 or more, or None for all images."
            )
        count = max(1, len(self.images))
        self.n_classes = count if n_classes is None else min(n_classes, count)
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(count, generator=generator)[: self.n_classes]
        self.register_buffer("classes", torch.full((count,), NO_CLASS))  # of each place in the data set
        self.classes[chosen] = torch.arange(self.n_classes)
        self.views = recipe(augment, self.images.shape[1:], views=1)
        backbone = build_backbone(backbone, self.images.shape)
        width = feature_width(backbone, self.images.shape)
        predictor = MLP(width, self.n_classes, hidden=512, norm="batch") if predictor is None else predictor
        self.model = CombinedNet(backbone, predictor)

    @property
    def chance_loss(self) -> float:
        """ln K: every class equally likely."""
        return math.log(self.n_classes)

    def _sampler(self, batch_size: int, shuffle: bool) -> EpochSampler:
        """Batches of the chosen images."""
        chosen = (self.classes != NO_CLASS).nonzero().squeeze(1).cpu()
        return EpochSampler(len(self.images), batch_size, shuffle, self.seed, chosen)

    def _forward(self, data: tuple[Tensor, Tensor]) -> Tensor:
        images, places = data
        view = self.preprocessing(self.views(images, self.generator)[0])  # (B, C, H, W)
        return self.loss(self.model(view).float(), self.classes[places])
