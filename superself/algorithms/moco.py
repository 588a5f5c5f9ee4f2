"""MoCo: find the key of the same image among the keys of recent batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from superself.basics.validate import require_bool, require_count, require_fraction, require_positive
from superself.data import Batch
from superself.joint_embedding import Head, JointEmbedding, SplitBatchNorm
from superself.losses import InfoNCE
from superself.networks import FeatureQueue, MomentumEncoder
from superself.training import Schedule

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options

PROJECTORS = {"linear": 1, "mlp": 2}  # name -> layers


class MomentumContrastSupervisor(SplitBatchNorm, JointEmbedding):
    """Find the key of the same image among the keys of recent batches.

    L = -log exp(q.k / t) / (exp(q.k / t) + sum_j exp(q.k_j / t)), averaged over images: q is the query of one view, k the key
    of the other, k_j the K keys in the queue; chance level: ln(K + 1). Keys come from a moving average of the query encoder
    and enter the queue after the step. The loss rises while they replace the random directions that the queue starts with.

    Source: He et al., Momentum Contrast, arXiv:1911.05722, Eqs. 1 and 2, and the authors' code; Chen et al., MoCo v2,
        arXiv:2003.04297.
    Deviations: in one process, shuffled batch norm is split batch norm: for queries and for keys it sees ``splits`` random parts
        of the batch separately; synchronised batch norm is neither; older keys of an image are excluded from its negatives;
        any optimizer instead of SGD.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        augment: makes two views; see Supervisor. "moco-v1" for the first version.
        queue_size: K; the papers have 65536, the authors' CIFAR-10 notebook 4096.
        momentum: of the key encoder, or a Schedule; the authors' CIFAR-10 notebook has 0.99, for short runs.
        temperature: t; 0.07 in v1.
        splits: parts of a batch, of at least two images each, that batch norm sees separately, in one process or several;
            with splits=1, batch statistics leak which key belongs to which query. No effect on networks without batch norm.
        symmetric: each view is the query once; a step costs twice as much.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        projector: from features (B, D) to embeddings (B, E): "mlp" (two layers, E = 128), "linear", or a module.
        loss: called with query (B, E), key (B, E), queue (K, E) and which of its rows show the same image (B, K), or None
            for batches without index; None for InfoNCE.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if an argument is out of range, or ``augment`` does not make two views.
    """

    family = "contrastive"
    compares_images = False
    loss_meaning = "cross-entropy of finding the key of the same image in the queue; 0 is perfect"
    likely_causes = (
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "the momentum of the key encoder is too low for consistent keys, or too high to move in a short run",
        "the run is too short to fill the queue (steps times batch_size below queue_size)",
    )
    named_projectors = tuple(PROJECTORS)
    presets = {"moco-v2": {}, "moco-v1": {"augment": "moco-v1", "projector": "linear", "temperature": 0.07}}

    def __init__(
        self,
        dataset: Any = None,
        augment: Any = "moco-v2",
        queue_size: int = 4096,
        momentum: float | Schedule = 0.999,
        temperature: float = 0.2,
        splits: int = 4,
        symmetric: bool = False,
        backbone: str | nn.Module | None = None,
        projector: str | Head = "mlp",
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(dataset, backbone, projector, loss, collate_fn, augment=augment, **options)
        require_count("queue_size", queue_size, "is the number of keys in the queue")
        require_fraction("momentum", momentum, "is the fraction of the key encoder that is kept")
        require_positive("temperature", temperature, "divides similarities")
        require_count("splits", splits, "is the number of parts of a batch")
        require_bool("symmetric", symmetric, "makes each view the query once")
        self.queue_size, self.momentum, self.temperature = queue_size, momentum, temperature
        self.splits, self.symmetric = splits, symmetric

    def _build(self) -> None:
        super()._build()  # self.model = f_q
        self.key_encoder = MomentumEncoder(self.model)  # f_k
        self.queue = FeatureQueue(self.queue_size, self.embedding_width)

    def _forward(self, data: Batch) -> Tensor:
        first, second = self.views(data)  # each (B, C, h, w)
        pairs = [(first, second), (second, first)] if self.symmetric else [(first, second)]
        keys = [self._shuffled_batch_norm(self.key_encoder, other) for _, other in pairs]  # each (B, E), Sec. 3.3
        queries = [self._split_batch_norm(self.model, view) for view, _ in pairs]  # each (B, E)
        same_image = None if data.index is None else self.queue.same_image(data.index)  # (B, K)
        losses = [self.loss(q, k, self.queue.features, same_image) for q, k in zip(queries, keys, strict=True)]  # Eq. 1
        index = None if data.index is None else data.index.repeat_interleave(len(pairs))
        self.queue.remember(torch.stack(keys, 1).flatten(0, 1), index)  # image by image; enqueued after the step
        self._note_similarities(queries[0], keys[0], same_image)
        return torch.stack(losses).mean()

    def _after_step(self) -> None:
        self.key_encoder.update(self.model, self.scheduled(self.momentum))  # Eq. 2
        self.queue.commit()

    @torch.no_grad()
    def _note_similarities(self, query: Tensor, key: Tensor, same_image: Tensor | None) -> None:
        with torch.autocast(query.device.type, enabled=False):
            query, key = normalize(query.float(), dim=1), normalize(key.float(), dim=1)
            positive = (query * key).sum(1)  # (B,)
            negatives = query @ self.queue.features.T  # (B, K)
        if same_image is not None:
            negatives = negatives.masked_fill(same_image, -1)
        self.note("top1", (positive > negatives.amax(1)).float())
        self.note("queue_filled", self.queue.filled)
        self.note("positive_cosine", positive)

    def _default_loss(self) -> InfoNCE:
        return InfoNCE(self.temperature)

    def _projector_arguments(self, width: int) -> dict[str, Any]:
        given = self.given.projector
        layers = PROJECTORS[given] if isinstance(given, str) else 2
        return {"out_features": 128, "hidden": min(width, 2048), "layers": layers}

    @property
    def chance_loss(self) -> float:
        """ln(K + 1): the key is as likely as each row of the queue."""
        return math.log(self.queue_size + 1)
