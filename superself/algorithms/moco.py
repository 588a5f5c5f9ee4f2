"""MoCo: find the key of the same image among the keys of recent batches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from superself.basics.validate import (
    require_bool,
    require_count,
    require_fraction,
    require_nonnegative,
    require_positive,
    shortened,
)
from superself.data import Batch
from superself.joint_embedding import Head, JointEmbedding, SplitBatchNorm
from superself.losses import CO2, InfoNCE, mix_hard_negatives
from superself.networks import FeatureQueue, MomentumEncoder
from superself.networks.batch_norm import batch_norms
from superself.networks.heads import check_head
from superself.training import Schedule

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options

PROJECTORS = {"linear": 1, "mlp": 2}  # name -> layers
V1 = {"augment": "moco-v1", "projector": "linear", "temperature": 0.07}


class MomentumContrastSupervisor(SplitBatchNorm, JointEmbedding):
    """Find the key of the same image among the keys of recent batches.

    L = -log exp(q.k / t) / (exp(q.k / t) + sum_j exp(q.k_j / t)), averaged over images: q is the query of one view, k the key
    of the other, k_j the K keys in the queue; chance level: ln(K + 1). Keys come from a moving average of the query encoder
    and enter the queue after the step. The loss rises while they replace the random directions that the queue starts with.

    Source: He et al., Momentum Contrast, arXiv:1911.05722, Eqs. 1 and 2, and the authors' code; Chen et al., MoCo v2,
        arXiv:2003.04297; ``eqco_alpha``: arXiv:2010.01929; ``mochi``: arXiv:2010.01028; ``co2_weight``: arXiv:2010.02217.
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
        symmetric: each view is the query once, and the keys of both enter the queue; a step costs twice as much.
        eqco_alpha: number of negatives that the K rows stand for (EqCo), so that a small queue acts like a large one.
        mochi: None, or (N, s, s') for s negatives mixed of two of the N hardest rows and s' mixed of query and row (MoCHi).
        mochi_warmup: epochs without them.
        co2_weight: of the consistency of query and key (CO2); 0 leaves it out.
        co2_temperature: divides similarities there.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        projector: from features (B, D) to embeddings (B, E): "mlp" (two layers, E = 128), "linear", or a module.
        predictor: from embeddings (B, E) to queries (B, E), on the query side only, likewise; None for none, as in the papers.
        loss: called with query (B, E), key (B, E), queue (K, E) and which of its rows show the same image (B, K), or None
            for batches without index, and with ``mochi`` after the warm-up with (B, s + s', E); None for InfoNCE.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if an argument is out of range, or ``augment`` does not make two views.
    """

    family = "contrastive"
    paper = ("He et al. 2020", "https://arxiv.org/abs/1911.05722")
    good_for = "most images; negatives come from a queue, so small batches are enough"
    compares_images = False
    loss_meaning = "cross-entropy of finding the key of the same image in the queue; 0 is perfect"
    likely_causes = (
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "the momentum of the key encoder is too low for consistent keys, or too high to move in a short run",
        "the run is too short to fill the queue (steps times batch_size below queue_size)",
    )
    named_projectors = tuple(PROJECTORS)
    presets = {
        "moco-v2": {},
        "moco-v1": V1,
        "moco-cifar10": {"projector": "linear", "queue_size": 4096, "momentum": 0.99, "temperature": 0.1, "splits": 8},
        "eqco": {"eqco_alpha": 65536, "queue_size": 256},
        "mochi": {"mochi": (1024, 1024, 128), "queue_size": 16384},
        "co2": {**V1, "co2_weight": 10.0, "co2_temperature": 0.04},
    }

    def __init__(
        self,
        dataset: Any = None,
        augment: Any = "moco-v2",
        queue_size: int = 4096,
        momentum: float | Schedule = 0.999,
        temperature: float = 0.2,
        splits: int = 4,
        symmetric: bool = False,
        eqco_alpha: float | None = None,
        mochi: Sequence[int] | None = None,
        mochi_warmup: int = 10,
        co2_weight: float = 0.0,
        co2_temperature: float = 0.04,
        backbone: str | nn.Module | None = None,
        projector: str | Head = "mlp",
        predictor: Head = None,
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
        if eqco_alpha is not None:
            require_positive("eqco_alpha", eqco_alpha, "is the number of negatives that the queue stands for")
        if mochi is not None:
            check_mochi(mochi, queue_size)
        require_count("mochi_warmup", mochi_warmup, "is the number of epochs without synthetic negatives", minimum=0)
        require_nonnegative("co2_weight", co2_weight, "is the weight of the consistency of query and key")
        require_positive("co2_temperature", co2_temperature, "divides similarities")
        self.eqco_alpha, self.mochi, self.mochi_warmup = eqco_alpha, mochi, mochi_warmup
        self.co2_weight, self.co2_temperature = co2_weight, co2_temperature
        check_head("predictor", predictor)
        self.given.predictor = predictor

    def _build(self) -> None:
        super()._build()  # self.model = f_q
        self.predictor = self._make_query_predictor()
        self.co2 = CO2(self.co2_temperature)
        self._has_batch_norm |= bool(batch_norms(self.predictor))
        self.key_encoder = MomentumEncoder(self.model)  # f_k
        self.queue = FeatureQueue(self.queue_size, self.embedding_width)

    def _forward(self, data: Batch) -> Tensor:
        first, second = self.views(data)  # each (B, C, h, w)
        pairs = [(first, second), (second, first)] if self.symmetric else [(first, second)]
        keys = [self._shuffled_batch_norm(self.key_encoder, other) for _, other in pairs]  # each (B, E), Sec. 3.3
        network = self.model if self.given.predictor is None else nn.Sequential(self.model, self.predictor)
        queries = [self._split_batch_norm(network, view) for view, _ in pairs]  # each (B, E)
        same_image = None if data.index is None else self.queue.same_image(data.index)  # (B, K)
        losses = [self._loss_of(q, k, same_image) for q, k in zip(queries, keys, strict=True)]
        index = None if data.index is None else data.index.repeat_interleave(len(pairs))
        self.queue.remember(torch.stack(keys, 1).flatten(0, 1), index)  # image by image; enqueued after the step
        self._note_similarities(queries[0], keys[0], same_image)
        return torch.stack(losses).mean()

    def _loss_of(self, query: Tensor, key: Tensor, same_image: Tensor | None) -> Tensor:
        """The loss of queries (B, E) whose keys are (B, E)."""
        given = query, key, self.queue.features, same_image
        if self.mochi is not None and self.epoch >= self.mochi_warmup:
            synthetic = mix_hard_negatives(query, given[2], self.generator, *self.mochi, exclude=same_image)
            loss = self.loss(*given, synthetic)  # (B, s + s', E)
        else:
            loss = self.loss(*given)  # Eq. 1
        if self.co2_weight:
            consistency = self.co2(*given)
            self.note("co2", consistency)
            loss = loss + self.co2_weight * consistency
        return loss

    def _before_epoch(self, epoch: int) -> None:
        epochs = self.run.settings.epochs
        if epoch == 0 and self.mochi is not None and self.mochi_warmup >= epochs:
            warnings.warn(
                f"mochi={self.mochi} starts after {self.mochi_warmup} epochs, and this run has {epochs}; pass a smaller "
                "mochi_warmup= or more epochs.",
                stacklevel=2,
            )

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
        return InfoNCE(self.temperature, self.eqco_alpha)

    def _make_query_predictor(self) -> nn.Module:
        """What follows the projector on the query side: nothing, or the predictor that was given."""
        given, width = self.given.predictor, self.embedding_width
        if given is None:
            return nn.Identity()
        linear = (
            next((m for m in given.modules() if isinstance(m, nn.Linear)), None)
            if isinstance(given, nn.Module)
            else None
        )
        if linear is not None and linear.in_features != width:
            raise ValueError(
                f"predictor starts with a linear layer for {linear.in_features} values, and it follows the projector, whose "
                f"embeddings have {width}; pass what maps features to embeddings as projector=."
            )
        return self._make_head(given, width, {"out_features": width})

    def _projector_arguments(self, width: int) -> dict[str, Any]:
        given = self.given.projector
        layers = PROJECTORS[given] if isinstance(given, str) else 2
        return {"out_features": 128, "hidden": min(width, 2048), "layers": layers}

    @property
    def chance_loss(self) -> float:
        """ln(negatives + 1): the key is as likely as each row of the queue and each synthetic negative; or ln(alpha + 1)."""
        synthetic = sum(self.mochi[1:]) if self.mochi is not None else 0
        return math.log(1 + (self.eqco_alpha or self.queue_size + synthetic))


def check_mochi(mochi: Any, queue_size: int) -> None:
    """Refuses anything but three counts (N, s, s') with N at most the size of the queue."""
    if isinstance(mochi, str) or not isinstance(mochi, Sequence) or len(mochi) != 3:
        raise ValueError(
            f"mochi={shortened(mochi)} must be (N, s, s'): how many hardest rows are mixed, how many points mix two of them, "
            "and how many mix the query with one; for example mochi=(1024, 1024, 128)."
        )
    require_count("mochi[0]", mochi[0], "is the number of hardest rows, out of the queue", maximum=queue_size)
    require_count("mochi[1]", mochi[1], "is the number of points that mix two rows", minimum=0)
    require_count("mochi[2]", mochi[2], "is the number of points that mix the query with a row", minimum=0)
