"""VICReg: embeddings of two views agree, while each feature varies and none repeats another."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from superself.data import Batch
from superself.joint_embedding import Head, JointEmbedding
from superself.losses import VICReg

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options


class VICRegSupervisor(JointEmbedding):
    """Embeddings of two views agree; each feature keeps a standard deviation of 1 over the batch; features do not covary.

    L = invariance * s + variance * v + covariance * c, over the images of the batches of all processes: s is the mean squared
    distance of the views, v a hinge on each feature's standard deviation, c the squared covariances; see ``losses.VICReg``.
    There are neither negatives nor a second network; embeddings are not normalised, and a collapse is punished by v.

    Source: Bardes et al., VICReg, arXiv:2105.04906, and the authors' code.
    Deviations: v is the mean over both views and s over features, as in the authors' code; a projector of 2048 instead of 8192
        features, unless the preset "vicreg-paper" is used; any optimizer instead of LARS; views without blur up to 32 pixels.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        augment: makes two views; see Supervisor.
        invariance: weight of s.
        variance: weight of v; implementations that add v of both views need half this value.
        covariance: weight of c.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        projector: from features (B, D) to embeddings (B, E); a module, a dictionary of arguments of MLP, or None for three
            layers of 2048 with batch norm between them.
        loss: called with the embeddings of both views (B, E); None for the paper's.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if a weight is negative, or ``augment`` does not make two views.
    """

    projector_defaults = {"out_features": 2048, "hidden": 2048, "layers": 3, "norm": "batch", "last_bias": False}
    family = "contrastive"
    paper = ("Bardes et al. 2022", "https://arxiv.org/abs/2105.04906")
    good_for = "excludes collapse explicitly; each view is regularised on its own"
    compares_images = True
    loss_meaning = (
        "distance of the views, lack of variance and covariance of features, weighted; 0 is perfect, and a collapsed network "
        "has the weight of the variance"
    )
    likely_causes = (
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "the batch is too small to estimate covariances (try 64 images or more)",
        "the weight of the variance is too low, compared with that of the invariance",
    )
    presets = {
        "vicreg-paper": {"projector": {"out_features": 8192, "hidden": 8192}},
        "vicreg-cifar10": {"augment": {"name": "moco-v2", "blur": False}, "variance": 50.0},  # of self_supervised
    }

    def __init__(
        self,
        dataset: Any = None,
        augment: Any = "byol",
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        backbone: str | nn.Module | None = None,
        projector: Head = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(dataset, backbone, projector, loss, collate_fn, augment=augment, **options)
        self.invariance, self.variance, self.covariance = invariance, variance, covariance
        self._default_loss()  # refuses bad values

    def _forward(self, data: Batch) -> Tensor:
        first, second = (self.model(view) for view in self.views(data))  # each (B, E)
        if not isinstance(self.loss, VICReg):
            return self.loss(first, second)
        terms = self.loss.terms(first, second)
        for name, term in zip(("invariance", "variance", "covariance"), terms, strict=True):
            self.note(name, term)
        return sum(terms)

    def _default_loss(self) -> VICReg:
        return VICReg(self.invariance, self.variance, self.covariance)
