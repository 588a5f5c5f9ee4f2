"""W-MSE: two views agree after their embeddings have been whitened."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from superself.data import Batch
from superself.joint_embedding import Head, JointEmbedding
from superself.losses import WMSE

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options


class WhiteningMSESupervisor(JointEmbedding):
    """Two views of an image agree, where embeddings are whitened within random parts of the batch.

    L = 2 - 2 cos(w, w'), averaged over images: w is the whitened embedding of one view, w' that of the other. From 0 when they
    align to 2, the chance level. The gradient flows through the whitening. It spreads embeddings over all dimensions, so
    there are neither negatives nor a second network. See ``losses.WMSE``.

    Source: Ermolov et al., Whitening for Self-Supervised Representation Learning, arXiv:2007.06346, and the authors' code.
    Deviations: embeddings of 16 instead of 64 features, so that batches of 32 images are enough, unless a preset is used; a
        little shrinkage; two views only; views of MoCo v2, which are greyscale more often.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        augment: makes two views; see Supervisor.
        w_size: images that are whitened together; None takes twice the width of the embeddings. Batches, of all processes
            together, must not be smaller.
        iterations: how often a batch is divided into random parts of that size.
        eps: shrinkage, the share of the identity matrix in covariances.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        projector: from features (B, D) to embeddings (B, E); a module, a dictionary of arguments of MLP, or None for 1024
            hidden features with batch norm and E = 16.
        loss: called with the embeddings of both views (B, E); None for the paper's.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if an argument is out of range, a batch is smaller than ``w_size``, or ``augment`` does not make two views.
    """

    projector_defaults = {"out_features": 16, "hidden": 1024, "norm": "batch"}
    family = "contrastive"
    paper = ("Ermolov et al. 2021", "https://arxiv.org/abs/2007.06346")
    good_for = "narrow embeddings that fill all dimensions; no negatives"
    compares_images = True
    loss_meaning = "2 - 2 cos of the whitened embeddings of two views; 0 is perfect"
    likely_causes = (
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "w_size is below twice the width of the embeddings, so that covariances are estimated badly",
        "the embeddings have too small a scale for the shrinkage (try a smaller eps)",
    )
    presets = {
        "w-mse-cifar10": {"projector": {"out_features": 64}},
        "w-mse-stl10": {"projector": {"out_features": 128}, "iterations": 4},
    }

    def __init__(
        self,
        dataset: Any = None,
        augment: Any = "moco-v2",
        w_size: int | None = None,
        iterations: int = 1,
        eps: float = 1e-4,
        backbone: str | nn.Module | None = None,
        projector: Head = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(dataset, backbone, projector, loss, collate_fn, augment=augment, **options)
        self.w_size, self.iterations, self.eps = w_size, iterations, eps
        self._default_loss()  # refuses bad values

    def _forward(self, data: Batch) -> Tensor:
        first, second = (self.model(view) for view in self.views(data))  # each (B, E)
        return self.loss(first, second)

    def _default_loss(self) -> WMSE:
        return WMSE(self.w_size, self.iterations, self.eps, self.generator)

    @property
    def chance_loss(self) -> float:
        """2: whitened embeddings of the views are orthogonal."""
        return 2.0
