"""BYOL: predict what a slow copy of the network sees in another view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from superself.augment import recipe
from superself.losses import NegativeCosine
from superself.networks import MLP, CombinedNet, MomentumEncoder, build_backbone, feature_width
from superself.supervisor import Supervisor
from superself.training import cosine


class BYOLSupervisor(Supervisor):
    """Two views of each image: the online network predicts the target network's embedding of the other view.

    L = sum over both directions of 2 - 2 cos(q(z), z'), averaged over images: 0 when prediction and target align, 4 when they
    are orthogonal. The target is a moving average of the online backbone and projector and gets no gradient. There are no
    negatives: what keeps features apart is the predictor, the slow target and batch norm in the heads, so a loss near 0 means
    nothing without the spread of the features beside it.

    Source: Grill et al., Bootstrap Your Own Latent, arXiv:2006.07733, Sec. 3.1 (Eqs. 1 and 2), Sec. 3.2 and App. B for views.
    Deviations: any optimiser in place of LARS (Adam with lr 1e-3 and batches of 64 to 256 was tried on CIFAR-10); views
        follow the size of the images, without blur up to 32 pixels.
    Args:
        dataset: see Supervisor, as are the options that are not listed here.
        augment: name of a recipe or transform that makes two views of a batch.
        momentum: of the target at the first step; rises to 1 over the run by half a cosine. For runs of a few hundred steps
            0.99 or less lets the target move at all.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        projector: from features (B, D) to embeddings (B, E); None for the paper's MLP with E = 256.
        predictor: from embeddings (B, E) to predictions (B, E); None for the paper's MLP.
        loss: of (prediction (B, E), target (B, E)); None for minus the cosine.
    Shape:
        data: images (B, C, H, W) and their places (B,) -> loss ().
    Raises:
        ValueError: if ``momentum`` is not in [0, 1], or ``augment`` does not make two views.
    """

    family = "contrastive"
    loss_meaning = "2 - 2 cos of prediction and target, both directions; 0 is aligned"
    likely_causes = (
        "the learning rate is too high for this optimiser (try a tenth of it)",
        "the momentum of the target is too low, or the predictor was replaced by one that copies its input",
        "a head without batch norm, or batches of fewer than about 32 images",
    )

    def __init__(
        self,
        dataset: Any = None,
        augment: str | Callable[..., Any] = "byol",
        momentum: float = 0.996,
        backbone: str | nn.Module | None = None,
        projector: nn.Module | None = None,
        predictor: nn.Module | None = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(None, dataset, loss or NegativeCosine(), collate_fn, **options)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum={momentum} is the share of the target that is kept; pass a number in [0, 1].")
        self.momentum = momentum
        self.views = recipe(augment, self.images.shape[1:], views=2)
        backbone = build_backbone(backbone, self.images.shape)
        width = feature_width(backbone, self.images.shape)
        projector = MLP(width, 256, hidden=4096, norm="batch") if projector is None else projector
        self.model = CombinedNet(backbone, projector)  # f, then g
        width = feature_width(self.model, self.images.shape)
        predictor = MLP(width, width, hidden=4096, norm="batch") if predictor is None else predictor
        self.predictor = predictor  # q, of the online network alone
        self.target = MomentumEncoder(self.model)

    @property
    def chance_loss(self) -> float:
        """4: predictions orthogonal to their targets in both directions."""
        return 4.0

    def _forward(self, data: tuple[Tensor, Tensor]) -> Tensor:
        first, second = (self.preprocessing(v) for v in self.views(data[0], self.generator))  # two (B, C, H, W)
        return self._one_way(first, second) + self._one_way(second, first)

    def _one_way(self, view: Tensor, other: Tensor) -> Tensor:
        """2 - 2 cos of the prediction from one view and the target's embedding of the other."""
        return 2 + 2 * self.loss(self.predictor(self.model(view)), self.target(other))

    def _update(self, loss: Tensor, optimizer: Optimizer, lr_scheduler: Any) -> None:
        super()._update(loss, optimizer, lr_scheduler)
        progress = self.step / max(self.total_steps, 1)
        self.target.update(self.model, cosine(self.momentum, 1.0, progress))
