"""Barlow Twins: features that agree between two views and do not repeat each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from superself.data import Batch
from superself.joint_embedding import Head, JointEmbedding
from superself.losses import BarlowTwins

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options


class BarlowTwinsSupervisor(JointEmbedding):
    """The same feature of two views correlates fully over the batch, different features do not correlate at all.

    L = sum_i (1 - C_ii)^2 + lambda sum_i sum_{j != i} C_ij^2: C is the cross-correlation, over the images of the batches of
    all processes, between the features of the embeddings of both views. 0 is perfect. There are neither negatives nor a
    second network, and constant features are not a solution. Wide embeddings work best.

    Source: Zbontar et al., Barlow Twins, arXiv:2103.03230, Algorithm 1, and the authors' code.
    Deviations: a projector of 2048 instead of 8192 features, and lambda in proportion to the batch, unless the preset
        "barlow-twins-paper" is used; any optimizer instead of LARS; views without blur up to 32 pixels.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        augment: makes two views; see Supervisor.
        weight: lambda, of the off-diagonal elements; None takes 0.0051 (8192 / E) (N / 2048) for batches of N, see
            ``losses.BarlowTwins``.
        scale: multiplies the loss; matters to optimizers that do not normalise gradients, such as SGD.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        projector: from features (B, D) to embeddings (B, E); a module, a dictionary of arguments of MLP, or None for three
            layers of 2048 with batch norm between them.
        loss: called with the embeddings of both views (B, E); None for the paper's.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if an argument is out of range, or ``augment`` does not make two views.
    """

    projector_defaults = {"out_features": 2048, "hidden": 2048, "layers": 3, "norm": "batch", "last_bias": False}
    family = "contrastive"
    paper = ("Zbontar et al. 2021", "https://arxiv.org/abs/2103.03230")
    good_for = "features without redundancy; no negatives, no second network"
    compares_images = True
    loss_meaning = "distance of the cross-correlation of both views' features to the identity; 0 is perfect"
    likely_causes = (
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "the batch is too small to estimate correlations (try 64 images or more)",
        "the weight of the off-diagonal elements is too high or too low for this projector",
    )
    presets = {"barlow-twins-paper": {"projector": {"out_features": 8192, "hidden": 8192}, "weight": 0.0051}}

    def __init__(
        self,
        dataset: Any = None,
        augment: Any = "byol",
        weight: float | None = None,
        scale: float = 1.0,
        backbone: str | nn.Module | None = None,
        projector: Head = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(dataset, backbone, projector, loss, collate_fn, augment=augment, **options)
        self.weight, self.scale = weight, scale
        self._default_loss()  # refuses bad values

    def _forward(self, data: Batch) -> Tensor:
        first, second = (self.model(view) for view in self.views(data))  # each (B, E)
        if not isinstance(self.loss, BarlowTwins):
            return self.loss(first, second)
        invariance, redundancy = self.loss.terms(first, second)  # Algorithm 1
        self.note("invariance", invariance)
        self.note("redundancy", redundancy)
        return invariance + redundancy

    def _default_loss(self) -> BarlowTwins:
        return BarlowTwins(self.weight, self.scale)

    @property
    def chance_loss(self) -> float | None:
        """What embeddings of independent features give if the views share nothing; None before the size of the batch is known."""
        if self.run is None:
            return None
        return self.loss.chance_level(self.embedding_width, self.run.settings.batch_size)
