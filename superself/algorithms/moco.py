"""MoCo: which of many keys is of the same image?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from superself.augment import recipe
from superself.losses import InfoNCE
from superself.networks import MLP, CombinedNet, FeatureQueue, MomentumEncoder, build_backbone, feature_width
from superself.supervisor import Supervisor

PROJECTORS = {"linear": 1, "mlp": 2}  # layers


class MomentumContrastSupervisor(Supervisor):
    """Two views of each image: the query of one finds the key of the other among the keys of recent batches.

    L = -log exp(q.k / t) / (exp(q.k / t) + sum_j exp(q.k_j / t)), averaged over images; k_j are the K keys in the queue, chance
    is ln(K + 1). Keys come from a moving average of the query encoder and enter the queue after the step. That is MoCo v2;
    ``augment="moco-v1", projector="linear", temperature=0.07`` is the first version.

    Source: He et al., Momentum Contrast, arXiv:1911.05722, Eqs. 1 and 2, and the authors' code; Chen et al., MoCo v2,
        arXiv:2003.04297.
    Deviations: on one device, shuffled batch norm is queries and keys computed in ``splits`` parts of the batch, at random and
        not the same for both, each normalised by itself, as in the authors' CIFAR-10 notebook, which has 8 parts of 64; older
        keys of the very image are not counted among its negatives, which matters for data sets not much larger than the
        queue; any optimiser in place of SGD.
    Args:
        dataset: see Supervisor, as are the options that are not listed here.
        augment: name of a recipe or transform that makes two views of a batch.
        queue_size: K; the papers have 65536, the authors' CIFAR-10 notebook 4096. The loss rises while the queue fills.
        momentum: of the key encoder, the same at each step; the authors' CIFAR-10 notebook has 0.99, for short runs.
        temperature: t; 0.07 in v1.
        splits: parts of a batch that are computed one after another, of at least two images; with 1, batch norm's statistics
            tell which key belongs to a query, with 4 hardly. Means nothing to networks without batch norm.
        symmetric: let each view be the query once; a step costs twice as much.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        projector: from features (B, D) to embeddings (B, E): "mlp" (two layers, E = 128), "linear", or a module.
        loss: of (query (B, E), key (B, E), queue (K, E), rows of the same image (B, K)); None for InfoNCE.
    Shape:
        data: images (B, C, H, W) and their places (B,) -> loss ().
    Raises:
        ValueError: if an argument is out of its range, or ``augment`` does not make two views.
    """

    family = "contrastive"
    loss_meaning = "cross-entropy of finding the key of the same image in the queue; 0 is perfect"
    likely_causes = (
        "the learning rate is too high for this optimiser (try a tenth of it)",
        "the momentum of the key encoder is too low for keys to agree, or so high that in a short run it hardly moves",
        "the run is too short to fill the queue (steps times batch_size below queue_size)",
    )

    def __init__(
        self,
        dataset: Any = None,
        augment: str | Callable[..., Any] = "moco-v2",
        queue_size: int = 4096,
        momentum: float = 0.999,
        temperature: float = 0.2,
        splits: int = 4,
        symmetric: bool = False,
        backbone: str | nn.Module | None = None,
        projector: str | nn.Module = "mlp",
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(None, dataset, loss or InfoNCE(temperature), collate_fn, **options)
        if not 0 <= momentum <= 1:
            raise ValueError(
                f"momentum={momentum} is the share of the key encoder that is kept; pass a number in [0, 1]."
            )
        if splits < 1:
            raise ValueError(f"splits={splits} makes no part of a batch; pass 1 or more.")
        self.momentum, self.symmetric = momentum, symmetric
        self.views = recipe(augment, self.images.shape[1:], views=2)
        backbone = build_backbone(backbone, self.images.shape)
        if isinstance(projector, str):
            projector = _projector(projector, feature_width(backbone, self.images.shape))
        self.model = CombinedNet(backbone, projector)  # f_q
        normed = any(isinstance(module, _BatchNorm) for module in self.model.modules())
        self.splits = splits if normed else 1
        self.key_encoder = MomentumEncoder(self.model)  # f_k
        self.queue = FeatureQueue(queue_size, feature_width(self.model, self.images.shape))

    @property
    def chance_loss(self) -> float:
        """ln(K + 1): the key is as likely as each row of the queue."""
        return math.log(len(self.queue.features) + 1)

    def _forward(self, data: tuple[Tensor, Tensor]) -> Tensor:
        images, places = data
        first, second = (self.preprocessing(v) for v in self.views(images, self.generator))  # two (B, C, H, W)
        pairs = [(first, second), (second, first)] if self.symmetric else [(first, second)]
        keys = [self._in_parts(self.key_encoder, other) for _, other in pairs]  # each (B, E)
        queue, own = self.queue.features, self.queue.same_image(places)  # (K, E), (B, K)
        queries = [self._in_parts(self.model, view) for view, _ in pairs]  # each (B, E)
        losses = [self.loss(q, k, queue, own) for q, k in zip(queries, keys, strict=True)]
        self.new = torch.cat(keys), places.repeat(len(pairs))  # not in the queue before the loss is known
        return torch.stack(losses).mean()

    def _in_parts(self, network: nn.Module, views: Tensor) -> Tensor:
        """What a network gives for views (B, C, H, W); while training, batch norm sees a random part of them at a time."""
        parts = min(self.splits, len(views) // 2) if self.training else 1
        if parts < 2:
            return network(views)
        order = torch.randperm(len(views), generator=self.generator).to(views.device, non_blocking=True)
        found = torch.cat([network(part) for part in views[order].tensor_split(parts)])
        return found[order.argsort()]  # (B, E)

    def _update(self, loss: Tensor, optimizer: Optimizer, lr_scheduler: Any) -> None:
        super()._update(loss, optimizer, lr_scheduler)
        self.key_encoder.update(self.model, self.momentum)
        self.queue.enqueue(*self.new)


def _projector(name: str, width: int) -> nn.Module:
    """The projector of v2 or v1, from features of this width."""
    if name not in PROJECTORS:
        raise ValueError(f"projector={name!r} is unknown; pass 'mlp', 'linear' or a module.")
    return MLP(width, 128, hidden=min(width, 2048), layers=PROJECTORS[name])
