"""MoCo v3: find the key of the same image among those of the batch; no queue, made for vision transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from superself.basics.distributed import gather, own_rows
from superself.basics.validate import require_bool, require_fraction, require_positive
from superself.data import Batch
from superself.joint_embedding import Head, JointEmbedding
from superself.losses import InfoNCE
from superself.networks import MomentumEncoder, patch_projection
from superself.networks.heads import check_head
from superself.training import Schedule

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options


class MoCoV3Supervisor(JointEmbedding):
    """Find the key of the same image among the keys of the whole batch; queries have a predictor, there is no queue.

    L = sum over both directions of -2 t log exp(q_i . k_i / t) / sum_j exp(q_i . k_j / t), averaged over images: q_i is the
    prediction from one view of image i, k_j the key of image j's other view, by a moving average of backbone and projector;
    chance level: 4 t ln B for batches of B. The factor t makes the size of the gradient independent of it.

    Source: Chen, Xie & He, An Empirical Study of Training Self-Supervised Vision Transformers, arXiv:2104.02057, and the
        authors' code for heads and numbers.
    Deviations: a transformer keeps its own positions and initial weights, where the authors' has fixed sine and cosine
        positions; any optimizer instead of AdamW or LARS; no blur up to 32 pixels.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        augment: makes two views; the paper's are BYOL's.
        temperature: t; 0.2 for transformers, 1 for ResNets in the authors' code.
        momentum: of the key encoder at the first step, from where it rises to 1 by half a cosine; or a Schedule.
        freeze_patch_projection: leave the first layer of a transformer, which embeds patches, at its random weights, for
            stability: its parameters do not require a gradient. Other networks have none.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        projector: from features (B, D) to embeddings (B, E): a module, a dictionary of arguments of MLP, or None for the
            authors' MLP with E = 256, of three layers for transformers and two for others.
        predictor: from embeddings (B, E) to queries (B, E), likewise; None for the authors' MLP of two layers.
        loss: called with query (B, E), key (B, E), the keys of the global batch (N, E) and which of these are the query's own
            (B, N), enters as 2 t loss; None for InfoNCE.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if an argument is out of range, or ``augment`` does not make two views.
    """

    projector_defaults = {
        "out_features": 256,
        "hidden": 4096,
        "layers": 2,
        "norm": "batch",
        "last_norm": "batch",
        "last_affine": False,
    }
    predictor_defaults = {"hidden": 4096, "layers": 2, "norm": "batch", "last_bias": False}
    family = "contrastive"
    paper = ("Chen et al. 2021", "https://arxiv.org/abs/2104.02057")
    good_for = "vision transformers, and large batches without a queue"
    compares_images = True
    loss_meaning = "cross-entropy of finding the key of the same image in the batch, both directions; 0 is perfect"
    likely_causes = (
        "the learning rate is too high for this optimizer (try a tenth of it, with a warm-up)",
        "batches are too small for enough negatives (try 64 or more, or MoCo with its queue)",
        "the momentum of the key encoder is too high to move in a short run (try 0.99)",
    )
    presets = {"moco-v3-vit": {"temperature": 0.2}, "moco-v3-resnet": {"temperature": 1.0}}

    def __init__(
        self,
        dataset: Any = None,
        augment: Any = "byol",
        temperature: float = 0.2,
        momentum: float | Schedule = 0.99,
        freeze_patch_projection: bool = True,
        backbone: str | nn.Module | None = None,
        projector: Head = None,
        predictor: Head = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(dataset, backbone, projector, loss, collate_fn, augment=augment, **options)
        require_positive("temperature", temperature, "divides similarities")
        require_fraction("momentum", momentum, "is the fraction of the key encoder that is kept")
        require_bool("freeze_patch_projection", freeze_patch_projection, "keeps the patch embedding at random weights")
        check_head("predictor", predictor)
        self.temperature, self.momentum = temperature, momentum
        self.freeze_patch_projection = freeze_patch_projection
        self.given.predictor = predictor

    def _build(self) -> None:
        super()._build()  # self.model = backbone and projector; self.predictor, for queries only
        self.key_encoder = MomentumEncoder(self.model)

    def _forward(self, data: Batch) -> Tensor:
        first, second = self.views(data)  # each (B, C, h, w)
        queries = [self.predictor(self.model(view)) for view in (first, second)]  # each (B, E)
        keys = [self.key_encoder(view) for view in (second, first)]  # each (B, E)
        return sum(self._loss_one_direction(q, k) for q, k in zip(queries, keys, strict=True))

    def _loss_one_direction(self, query: Tensor, key: Tensor) -> Tensor:
        """2 t times the cross-entropy of finding the keys (B, E) of queries (B, E) among those of all processes."""
        candidates = gather(normalize(key.float(), dim=1))  # (N, E)
        own = own_rows(key)  # (B, N): the key itself counts once, as the positive
        self._note_similarities(query, key, candidates, own)
        return 2 * self.temperature * self.loss(query, key, candidates, own)

    def _after_step(self) -> None:
        self.key_encoder.update(self.model, self._rising_momentum())

    @torch.no_grad()
    def _note_similarities(self, query: Tensor, key: Tensor, candidates: Tensor, own: Tensor) -> None:
        with torch.autocast(query.device.type, enabled=False):
            query = normalize(query.float(), dim=1)
            positive = (query * normalize(key.float(), dim=1)).sum(1)  # (B,)
            others = (query @ candidates.T).masked_fill(own, -1)  # (B, N)
        self.note("top1", (positive > others.amax(1)).float())
        self.note("positive_cosine", positive)

    def _default_loss(self) -> InfoNCE:
        return InfoNCE(self.temperature)

    def _make_backbone(self) -> nn.Module:
        backbone = super()._make_backbone()
        patches = patch_projection(backbone)
        self._is_transformer = patches is not None
        if isinstance(patches, (nn.Conv2d, nn.Linear)) and self.freeze_patch_projection:  # not a stem of several layers
            patches.requires_grad_(False)
        return backbone

    def _projector_arguments(self, width: int) -> dict[str, Any]:
        return {**self.projector_defaults, "layers": 3} if self._is_transformer else self.projector_defaults

    def _predictor_arguments(self, width: int) -> dict[str, Any]:
        last = {"last_norm": "batch", "last_affine": False} if self._is_transformer else {}
        return {**super()._predictor_arguments(width), **last}

    @property
    def chance_loss(self) -> float | None:
        """4 t ln B for the images of a step; None if there is only one."""
        images = 1 if self.run is None else self.run.settings.batch_size
        return 4 * self.temperature * math.log(images) if images > 1 else None
