"""SimSiam: predict the other view's embedding with the same network, and stop the gradient there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from superself.basics.validate import require_bool
from superself.data import Batch
from superself.joint_embedding import Head, JointEmbedding
from superself.losses import NegativeCosine
from superself.networks.heads import check_head
from superself.training import GroupRule

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options


class SimSiamSupervisor(JointEmbedding):
    """A predictor finds, from one view, the embedding of the other view by the same network, which gets no gradient there.

    L = 1/2 D(p_1, z_2) + 1/2 D(p_2, z_1), averaged over images: z is the embedding of a view, p its prediction, D minus the
    cosine without a gradient into z. From -1 when they align to 0, the chance level. It is BYOL without a slow copy. There
    are no negatives, so a low loss is only good if the embeddings stay spread out.

    Source: Chen & He, Exploring Simple Siamese Representation Learning, arXiv:2011.10566, Sec. 3, and the authors'
        code.
    Deviations: any optimizer instead of SGD; views without blur up to 32 pixels.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        augment: makes two views; see Supervisor.
        fixed_predictor_lr: schedules leave the learning rate of the predictor as it is, so that it keeps up with embeddings
            that still change.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        projector: from features (B, D) to embeddings (B, E); a module, a dictionary of arguments of MLP, or None for the
            paper's three layers of 2048 with batch norm, the last one without scale and shift.
        predictor: from embeddings (B, E) to predictions (B, E), likewise; None for the paper's two layers with E / 4 hidden
            features.
        loss: called with prediction (B, E) and target (B, E) in each direction; None for minus the cosine.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if ``augment`` does not make two views.
    """

    projector_defaults = {
        "out_features": 2048,
        "hidden": 2048,
        "layers": 3,
        "norm": "batch",
        "last_norm": "batch",
        "last_affine": False,
    }
    predictor_defaults = {"norm": "batch"}  # and a bottleneck
    family = "contrastive"
    paper = ("Chen & He 2021", "https://arxiv.org/abs/2011.10566")
    good_for = "the simplest method without negatives; little memory"
    compares_images = False
    loss_meaning = "minus the cosine of prediction and target; -1 is perfect, but a collapsed network also reaches -1"
    likely_causes = (
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "a custom projector without batch norm at its end, or a predictor without batch norm or as wide as its input",
        "batches of fewer than about 32 images",
    )
    presets = {"simsiam-paper": {}, "simsiam-cifar10": {"projector": {"layers": 2}}}

    def __init__(
        self,
        dataset: Any = None,
        augment: Any = "moco-v2",
        fixed_predictor_lr: bool = True,
        backbone: str | nn.Module | None = None,
        projector: Head = None,
        predictor: Head = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(dataset, backbone, projector, loss, collate_fn, augment=augment, **options)
        require_bool("fixed_predictor_lr", fixed_predictor_lr, "keeps schedules away from the predictor")
        self.fixed_predictor_lr = fixed_predictor_lr
        check_head("predictor", predictor)
        self.given.predictor = predictor

    def _forward(self, data: Batch) -> Tensor:
        first, second = (self.model(view) for view in self.views(data))  # z, each (B, E)
        forth = self.loss(self.predictor(first), second.detach())
        back = self.loss(self.predictor(second), first.detach())
        return (forth + back) / 2  # Sec. 3

    def _make_predictor(self, width: int) -> nn.Module:
        bottleneck = {"out_features": width, "hidden": max(1, width // 4), **self.predictor_defaults}
        return self._make_head(self.given.predictor, width, bottleneck)

    def _group_rules(self) -> list[GroupRule]:
        return [GroupRule(self.predictor, fixed_lr=self.fixed_predictor_lr, name="predictor")]

    def _default_loss(self) -> NegativeCosine:
        return NegativeCosine()

    @property
    def chance_loss(self) -> float:
        """0: predictions orthogonal to their targets."""
        return 0.0
