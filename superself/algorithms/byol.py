"""BYOL: predict what a slow copy of the network sees in another view."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from superself.basics.validate import require_fraction
from superself.data import Batch
from superself.joint_embedding import Head, JointEmbedding
from superself.losses import NegativeCosine
from superself.networks import MomentumEncoder
from superself.networks.heads import check_head
from superself.training import Schedule

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options


class BYOLSupervisor(JointEmbedding):
    """The online network predicts, from one view, the target network's embedding of the other view.

    L = sum over both directions of 2 - 2 cos(q(z), z'), averaged over images: z is the online embedding of one view, q the
    predictor, z' the target's embedding of the other view. 0 when prediction and target align, 4 when they are orthogonal.
    The target is a moving average of the online backbone and projector and gets no gradient. There are no negatives, so a
    low loss is only good if the embeddings stay spread out.

    Source: Grill et al., Bootstrap Your Own Latent, arXiv:2006.07733, Sec. 3.1 (Eqs. 1 and 2), Sec. 3.2 and App. B for views.
    Deviations: any optimizer instead of LARS; views follow the size of the images, without blur up to 32 pixels.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        augment: makes two views; see Supervisor.
        momentum: of the target at the first step, from where it rises to 1 by half a cosine; or a Schedule. For runs of a few
            hundred steps use 0.99 or less, so that the target moves at all.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        projector: from features (B, D) to embeddings (B, E); a module, a dictionary of arguments of MLP, or None for the
            paper's MLP with E = 256.
        predictor: from embeddings (B, E) to predictions (B, E), likewise; None for the paper's MLP.
        loss: called with prediction (B, E) and target (B, E), enters as 2 + 2 loss; None for minus the cosine.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if ``momentum`` is not in [0, 1], or ``augment`` does not make two views.
    """

    presets = {"byol-cifar10": {"momentum": 0.99}, "byol-paper": {}}
    projector_defaults = {"out_features": 256, "hidden": 4096, "norm": "batch"}
    predictor_defaults = {"hidden": 4096, "norm": "batch"}
    family = "contrastive"
    paper = ("Grill et al. 2020", "https://arxiv.org/abs/2006.07733")
    good_for = "most images; no negatives, so small batches are enough; keeps improving in long runs"
    compares_images = False
    loss_meaning = (
        "2 - 2 cos of prediction and target, both directions; 0 is perfect, but a collapsed network also reaches 0"
    )
    likely_causes = (
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "the momentum of the target is too low (try 0.99 or more), or a custom predictor can copy its input",
        "a head without batch norm, or batches of fewer than about 32 images",
    )

    def __init__(
        self,
        dataset: Any = None,
        augment: Any = "byol",
        momentum: float | Schedule = 0.996,
        backbone: str | nn.Module | None = None,
        projector: Head = None,
        predictor: Head = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(dataset, backbone, projector, loss, collate_fn, augment=augment, **options)
        require_fraction("momentum", momentum, "is the fraction of the target that is kept")
        self.momentum = momentum
        check_head("predictor", predictor)
        self.given.predictor = predictor

    def _build(self) -> None:
        super()._build()  # self.model = backbone f and projector g; self.predictor = q, online network only
        self.target = MomentumEncoder(self.model)

    def _forward(self, data: Batch) -> Tensor:
        first, second = self.views(data)  # each (B, C, h, w)
        return self._loss_one_direction(first, second) + self._loss_one_direction(second, first)  # Sec. 3.1

    def _loss_one_direction(self, view: Tensor, other: Tensor) -> Tensor:
        """2 - 2 cos of the prediction from one view and the target's embedding of the other."""
        loss = self.loss(self.predictor(self.model(view)), self.target(other))
        if self.uses_its_own_loss:
            self.note("cosine", -loss)
        return 2 + 2 * loss  # Eq. 2

    def _after_step(self) -> None:
        self.target.update(self.model, self._rising_momentum())  # Eq. 1; Sec. 3.2

    def _default_loss(self) -> NegativeCosine:
        return NegativeCosine()

    @property
    def chance_loss(self) -> float:
        """4: predictions orthogonal to their targets in both directions."""
        return 4.0
