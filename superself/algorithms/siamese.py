"""Siamese: a joint embedding that is put together from parts - objective, negatives, second network, heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from superself.basics.distributed import gather, rank
from superself.basics.validate import (
    require_bool,
    require_choice,
    require_count,
    require_fraction,
    require_nonnegative,
    require_positive,
    shortened,
)
from superself.data import Batch
from superself.joint_embedding import Head, JointEmbedding, SplitBatchNorm
from superself.losses import PairLoss, VICReg
from superself.networks import FeatureQueue, MomentumEncoder
from superself.networks.heads import check_head
from superself.training import Schedule

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options

NEGATIVES = ("batch", "queue")


class SiameseSupervisor(SplitBatchNorm, JointEmbedding):
    """A joint embedding from parts: MoCo, SimCLR, BYOL, VICReg and what lies between them, as settings of one method.

    The query is what predictor and projector make of one view, the key the embedding of the other view by a second network: a
    moving average (``momentum=0.996``), or the same network with or without a gradient (``momentum=None``). The objective
    compares them, with "ce" (cross-entropy), "ip" (inner product) or "bce" (binary cross-entropy) also with negatives:

    L = loss_factor * sum over directions of the objective, averaged over images; see ``PairLoss`` for "ce", "ip" and "bce", and
    VICReg for "vic": 25 mean squared difference + 25 variance + 1 covariance.

    Source: the options of github.com/untitled-ai/self_supervised; MoCo, arXiv:1911.05722; SimCLR, arXiv:2002.05709; BYOL,
        arXiv:2006.07733; VICReg, arXiv:2105.04906.
    Deviations: negatives from batch and queue may be used together; older keys of the query's image are left out; keys of both
        directions enter the queue. Directions are summed, as there, where MoCo here averages them. Negatives from the batch
        are keys alone, where SimCLR also has queries. The variance term is the sum over both views.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        augment: makes two views; see Supervisor.
        objective: "ce", "ip", "bce" or "vic".
        negatives: any of "batch" (keys of the other images of the batch) and "queue" (keys of earlier batches); () for none.
        symmetric: each view is the query once; the loss is the sum.
        momentum: of the second network, or a Schedule; with 0 it is a copy of the first. None: the first network itself.
        stop_gradient: with ``momentum=None``, the key is the embedding without a gradient; otherwise it passes the predictor as
            the query does, and has a gradient.
        temperature: divides similarities, for "ce" and "bce".
        queue_size: K, keys in the queue.
        alpha: EqCo: for "ce", the number of negatives that the loss is equivalent to; None counts those there are.
        normalize_embeddings: scale query and key to unit length; False for "vic".
        splits: parts of a batch that batch norm of backbone and projector sees separately, as in MoCo; 1 for the whole batch.
        loss_factor: multiplies the loss.
        vic_weights: of invariance, variance and covariance.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        projector: from features (B, D) to embeddings (B, E): a module, a dictionary of arguments of MLP (depth, width, norm,
            ``weight_standardization``), or None for two layers of 512 and 128 without norm.
        predictor: from embeddings (B, E) to predictions (B, E), likewise; None for no predictor.
        loss: called with query and key (B, E), and where there are negatives with these (K, E), of unit length, and which of them
            to leave out (B, K); None for the objective.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if an argument is out of range, or two of them contradict each other.
    """

    projector_defaults = {"out_features": 128, "hidden": 512}
    predictor_defaults = {"hidden": 512}
    family = "contrastive"
    paper = ("BYOL, MoCo, VICReg", "https://arxiv.org/abs/2006.07733")
    good_for = "a joint embedding from parts: find out which part of a method matters"
    loss_meaning = (
        "the objective, summed over directions; 0 is perfect, which with ip and vic has no meaning without negatives"
    )
    likely_causes = (
        "the parts allow a collapse: no negatives, and no slow second network, predictor with batch norm or variance term",
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "the run is too short to fill the queue (steps times batch_size below queue_size), or batches are small",
    )
    presets = {
        "siamese-moco": {"queue_size": 65536},
        "siamese-byol": {
            "objective": "ip",
            "negatives": (),
            "symmetric": True,
            "momentum": Schedule(0.996, 1.0),
            "projector": {"norm": "batch"},
            "predictor": {"norm": "batch"},
            "loss_factor": 2.0,
        },
        "siamese-simclr": {"negatives": ("batch",), "symmetric": True, "momentum": 0.0},
        "siamese-vicreg-cifar10": {
            "augment": {"name": "moco-v2", "blur": False},
            "objective": "vic",
            "negatives": (),
            "momentum": None,
            "normalize_embeddings": False,
            "projector": {"layers": 3, "hidden": 2048, "out_features": 2048, "norm": "batch"},
        },
    }

    def __init__(
        self,
        dataset: Any = None,
        augment: Any = "moco-v2",
        objective: str = "ce",
        negatives: Sequence[str] = ("queue",),
        symmetric: bool = False,
        momentum: float | Schedule | None = 0.996,
        stop_gradient: bool = False,
        temperature: float = 0.2,
        queue_size: int = 4096,
        alpha: float | None = None,
        normalize_embeddings: bool = True,
        splits: int = 1,
        loss_factor: float = 1.0,
        vic_weights: tuple[float, float, float] = (25.0, 25.0, 1.0),
        backbone: str | nn.Module | None = None,
        projector: Head = None,
        predictor: Head = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(dataset, backbone, projector, loss, collate_fn, augment=augment, **options)
        check_head("predictor", predictor)
        self.given.predictor = predictor
        self.objective, self.negatives, self.symmetric = objective, negatives, symmetric
        self.momentum, self.stop_gradient = momentum, stop_gradient
        self.temperature, self.queue_size, self.alpha = temperature, queue_size, alpha
        self.normalize_embeddings, self.splits, self.loss_factor = normalize_embeddings, splits, loss_factor
        self.vic_weights = vic_weights
        self._check_values()
        self._check_combination()
        if "queue" not in self.negatives:
            self.likely_causes = self.likely_causes[:2]  # the last one is about the queue

    def _build(self) -> None:
        super()._build()  # self.model = backbone and projector; self.predictor
        self.target = None if self.momentum is None else MomentumEncoder(self.model)
        self.queue = FeatureQueue(self.queue_size, self.embedding_width) if "queue" in self.negatives else None

    def _forward(self, data: Batch) -> Tensor:
        views = self.views(data)  # two, each (B, C, h, w)
        directions = [(0, 1), (1, 0)] if self.symmetric else [(0, 1)]  # view of the query, view of the key
        keys = {}
        if self.momentum is not None:
            keys = {j: self._shuffled_batch_norm(self.target, views[j]) for _, j in directions}  # each (B, E)
        needed = range(2) if self.symmetric or self.momentum is None else range(1)
        embeddings = [self._split_batch_norm(self.model, views[i]) for i in needed]  # each (B, E)
        queries = [self.predictor(z) for z in embeddings]  # each (B, E)
        if self.momentum is None:
            made = [z.detach() for z in embeddings] if self.stop_gradient else queries
            keys = {j: made[j] for _, j in directions}
        loss = sum(self._loss_one_direction(queries[i], embeddings[i], keys[j], data.index) for i, j in directions)
        if "queue" in self.negatives:
            index = None if data.index is None else data.index.repeat_interleave(len(keys))
            self.queue.remember(torch.stack(list(keys.values()), 1).flatten(0, 1), index)  # enqueued after the step
        return self.loss_factor * loss

    def _after_step(self) -> None:
        if self.momentum is not None:
            self.target.update(self.model, self.scheduled(self.momentum))
        if "queue" in self.negatives:
            self.queue.commit()

    def _loss_one_direction(self, query: Tensor, embedding: Tensor, key: Tensor, index: Tensor | None) -> Tensor:
        """The objective of queries (B, E) and keys (B, E); ``embedding`` (B, E) is the query before the predictor."""
        candidates = self._candidates(key, index) if self.negatives else ()
        self._note_similarities(query, embedding, key, *candidates)
        if isinstance(self.loss, VICReg):
            for name, term in zip(("invariance", "variance", "covariance"), self.loss.terms(query, key), strict=True):
                self.note(name, term.detach())
        return self.loss(query, key, *candidates)

    def _candidates(self, keys: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
        """The negatives (K, E), of unit length, and which of them show the image of which query (B, K)."""
        negatives, same_image = [], []
        if "batch" in self.negatives:
            with torch.autocast(keys.device.type, enabled=False):
                negatives.append(normalize(gather(keys).float(), dim=1) if self.normalize_embeddings else gather(keys))
            places = torch.arange(len(keys), device=keys.device) + rank() * len(keys) if index is None else index
            same_image.append(places[:, None] == gather(places))
        if "queue" in self.negatives:
            negatives.append(self.queue.features)
            rows = self.queue.places.new_full((len(keys),), -2) if index is None else index  # -2 shows no image
            same_image.append(self.queue.same_image(rows))
        return torch.cat(negatives), torch.cat(same_image, 1)

    @torch.no_grad()
    def _note_similarities(
        self,
        query: Tensor,
        embedding: Tensor,
        key: Tensor,
        negatives: Tensor | None = None,
        exclude: Tensor | None = None,
    ) -> None:
        """Cosines of embeddings and keys of the same image and of others in the batch, and how often a query finds its key."""
        with torch.autocast(query.device.type, enabled=False):
            query, embedding, key = (normalize(x.float(), dim=1) for x in (query, embedding, key))
            if embedding.shape == key.shape:
                cosines = embedding @ gather(key).T  # (B, N) for N images in all
                positive = (embedding * key).sum(1)  # (B,)
                self.note("positive_cosine", positive)
                if cosines.shape[1] > 1:
                    self.note("negative_cosine", (cosines.sum(1) - positive) / (cosines.shape[1] - 1))
            if negatives is not None and query.shape == key.shape:
                others = query @ normalize(negatives.float(), dim=1).T  # (B, K)
                is_nearer = (others > (query * key).sum(1, keepdim=True)) & ~exclude  # than the key
                ahead = is_nearer.sum(1)  # (B,)
                self.note("top1", (ahead < 1).float())
                self.note("top5", (ahead < 5).float())
        if "queue" in self.negatives:
            self.note("queue_filled", self.queue.filled)

    def _default_loss(self) -> nn.Module:
        if self.objective == "vic":
            invariance, variance, covariance = self.vic_weights
            return VICReg(invariance, 2 * variance, covariance)  # ours takes the mean of both views' variance terms
        return PairLoss(self.objective, self.temperature, self.alpha, self.normalize_embeddings)

    def _make_predictor(self, width: int) -> nn.Module:
        return nn.Identity() if self.given.predictor is None else super()._make_predictor(width)

    @property
    def compares_images(self) -> bool:
        """Whether the loss of an image depends on the others of its batch: as negatives, or in variances and covariances."""
        return self.objective == "vic" or "batch" in self.negatives

    @property
    def chance_loss(self) -> float | None:
        """The loss of embeddings that are orthogonal to each other; None for "vic", or while the size of batches is unknown."""
        if self.objective == "vic" or ("batch" in self.negatives and self.run is None):
            return None
        count = self.queue_size if "queue" in self.negatives else 0
        count += self.run.settings.batch_size - 1 if "batch" in self.negatives else 0
        one_direction = {
            "ce": math.log(1 + (count if self.alpha is None else self.alpha)),
            "ip": 1.0 + count,
            "bce": (1 + count) * math.log(2),
        }[self.objective]
        return self.loss_factor * one_direction * (2 if self.symmetric else 1)

    def _check_values(self) -> None:
        require_choice("objective", self.objective, ("ce", "ip", "bce", "vic"))
        listed = isinstance(self.negatives, (list, tuple)) and not set(map(str, self.negatives)) - set(NEGATIVES)
        if not listed or len(set(self.negatives)) < len(self.negatives):
            raise ValueError(
                f'negatives={shortened(self.negatives)} are not sources of negatives; pass ("batch",), ("queue",), both or ().'
            )
        require_bool("symmetric", self.symmetric, "makes each view the query once")
        if self.momentum is not None:
            require_fraction("momentum", self.momentum, "is the fraction of the second network that is kept")
        require_bool("stop_gradient", self.stop_gradient, "takes the gradient from the keys")
        require_positive("temperature", self.temperature, "divides similarities")
        require_count("queue_size", self.queue_size, "is the number of keys in the queue")
        if self.alpha is not None:
            require_positive("alpha", self.alpha, "is the number of negatives that the loss is equivalent to")
        require_bool("normalize_embeddings", self.normalize_embeddings, "scales query and key to unit length")
        require_count("splits", self.splits, "is the number of parts of a batch")
        require_positive("loss_factor", self.loss_factor, "multiplies the loss")
        if not isinstance(self.vic_weights, (list, tuple)) or len(self.vic_weights) != 3:
            raise ValueError(
                f"vic_weights={shortened(self.vic_weights)} must be three numbers, for example (25, 25, 1)."
            )
        for weight in self.vic_weights:
            require_nonnegative("vic_weights", weight, "weights a term")

    def _check_combination(self) -> None:
        """Refuses arguments that contradict each other."""
        objective, has_negatives = self.objective, bool(self.negatives)
        if objective == "ce" and not has_negatives:
            raise ValueError(
                'objective="ce" finds the key among negatives, and negatives=() has none; pass negatives=("queue",) or '
                '("batch",), or objective="ip".'
            )
        if objective == "vic" and has_negatives:
            raise ValueError(
                f'objective="vic" compares the two views without negatives, got negatives={self.negatives!r}; pass negatives=().'
            )
        if objective == "vic" and self.normalize_embeddings:
            raise ValueError(
                'objective="vic" wants each value to have a deviation of 1, which vectors of unit length cannot reach; pass '
                "normalize_embeddings=False."
            )
        if "queue" in self.negatives and not self.normalize_embeddings:
            raise ValueError(
                'the queue holds vectors of unit length and normalize_embeddings=False gives others; pass negatives=("batch",) '
                "or normalize_embeddings=True."
            )
        if self.alpha is not None and objective != "ce":
            raise ValueError(
                f'alpha={self.alpha} weights the negatives of objective="ce", not of {objective!r}; leave it out.'
            )
        if self.stop_gradient and self.momentum is not None:
            raise ValueError(
                "stop_gradient=True is for keys of the first network; those of a second one never have a gradient. Pass "
                "momentum=None too, or leave stop_gradient out."
            )
        if self.symmetric and self.momentum is None and not self.stop_gradient and not has_negatives:
            raise ValueError(
                "symmetric=True computes the same loss twice where both views go through the same networks, with a gradient and "
                "without negatives; leave it out, or pass a momentum or stop_gradient=True."
            )
