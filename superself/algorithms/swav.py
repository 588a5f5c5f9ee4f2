"""SwAV: predict the cluster of one view from the other views, with clusters of equal size."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softmax

from superself.basics.distributed import mean, rank, world_size
from superself.basics.validate import require_count, require_positive
from superself.data import Batch
from superself.joint_embedding import Head
from superself.losses import SwAVLoss, sinkhorn
from superself.multi_crop import MultiCropEmbedding
from superself.networks import FeatureQueue, Prototypes
from superself.training import Duration, check_duration, count_steps

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options


class SwAVSupervisor(MultiCropEmbedding):
    """Each view predicts the soft cluster (code) of the two large views of the same image.

    L = -sum_k q_k log softmax(z.c / t)_k, averaged over images, codes q of both large views and all other views: z is the
    embedding of a view and c_k one of K prototypes, all of unit length. The codes of a batch, and of a queue of earlier
    embeddings, are made by Sinkhorn-Knopp so that all prototypes are used equally. Chance level: ln K.

    Source: Caron et al., SwAV, arXiv:2006.09882, and the authors' code.
    Deviations: the gradient passes through the normalisation of the prototypes; a queue whose size is not a multiple of
        the batch keeps all its rows; any optimizer instead of LARS.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        augment: makes two large views and any number of small ones; see Supervisor.
        small_crops: small views of the recipe; None for its 6, 0 for the large ones alone, at about half of the time.
        n_prototypes: K; the paper has 3000 for the 1000 classes of ImageNet.
        temperature: t, divides the predicted similarities.
        epsilon: smoothness of the codes; the paper has 0.05, with which small runs did not start to learn.
        iterations: of Sinkhorn-Knopp.
        freeze_prototypes: how long prototypes keep their random directions: steps, a fraction of the run, or ``epochs(1)``.
        queue_size: earlier embeddings of each large view that take part in Sinkhorn-Knopp; 0 for none. Worth it if a batch
            has fewer images than there are prototypes.
        queue_from: when the queue starts to fill; it is used once it is full.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        projector: from features (B, D) to embeddings (B, E): a module, a dictionary of arguments of MLP, or None.
        loss: called with scores, (B, K) of each view, and codes, (B, K) of each large view; None for SwAVLoss.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if an argument is out of range, or ``augment`` makes fewer than two views.
    """

    projector_defaults = {"out_features": 128, "hidden": 2048, "norm": "batch"}
    family = "clustering"
    paper = ("Caron et al. 2020", "https://arxiv.org/abs/2006.09882")
    good_for = "images that fall into groups; many small views instead of large batches"
    compares_images = True
    loss_meaning = "cross-entropy of predicting the codes of the other views; 0 is perfect, but codes are soft"
    likely_causes = (
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "the prototypes move too early (try freeze_prototypes=epochs(3)), or the codes are too soft (try epsilon=0.01)",
        "batches are small for this many prototypes (try n_prototypes=50, or queue_size=1024)",
    )
    presets = {
        "swav-paper": {
            "n_prototypes": 3000,
            "epsilon": 0.05,
            "freeze_prototypes": "1 epochs",
            "queue_size": 3840,
            "queue_from": "15 epochs",
        },
    }

    def __init__(
        self,
        dataset: Any = None,
        augment: Any = "swav",
        small_crops: int | None = None,
        n_prototypes: int = 100,
        temperature: float = 0.1,
        epsilon: float = 0.02,
        iterations: int = 3,
        freeze_prototypes: Duration = "1 epochs",
        queue_size: int = 0,
        queue_from: Duration = "15 epochs",
        backbone: str | nn.Module | None = None,
        projector: Head = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(dataset, backbone, projector, loss, collate_fn, small_crops, augment=augment, **options)
        require_count("n_prototypes", n_prototypes, "is the number of clusters", minimum=2)
        require_positive("temperature", temperature, "divides similarities")
        require_positive("epsilon", epsilon, "is the smoothness of the codes")
        require_count("iterations", iterations, "is the number of times that prototypes and images are scaled")
        check_duration("freeze_prototypes", freeze_prototypes, lowest=0)
        require_count("queue_size", queue_size, "is the number of earlier embeddings", minimum=0)
        check_duration("queue_from", queue_from, lowest=0)
        self.n_prototypes, self.temperature, self.epsilon = n_prototypes, temperature, epsilon
        self.iterations, self.freeze_prototypes = iterations, freeze_prototypes
        self.queue_size, self.queue_from = queue_size, queue_from

    def _build(self) -> None:
        super()._build()
        self.prototypes = Prototypes(self.embedding_width, self.n_prototypes)
        self.prototypes.renormalize()
        sizes = [self.queue_size] * self.n_views if self.queue_size else []  # one for each large view
        self.queues = nn.ModuleList(FeatureQueue(size, self.embedding_width) for size in sizes)

    def _forward(self, data: Batch) -> Tensor:
        views = self.views(data)  # each (B, C, h, w)
        embeddings = normalize(self._embed_views(self.model, views).float(), dim=1)  # (V * B, E)
        scores = self.prototypes(embeddings).chunk(len(views))  # each (B, K)
        codes = [self._codes(score, number) for number, score in enumerate(scores[: self.n_views])]  # each (B, K)
        loss = self.loss(scores, codes)
        for queue, large in zip(self.queues, embeddings.chunk(len(views))[: self.n_views], strict=False):
            queue.remember(large)
        self._note_codes(scores, codes)
        return loss

    @torch.no_grad()
    def _codes(self, scores: Tensor, number: int) -> Tensor:
        """The codes (B, K) of a large view from its scores (B, K), balanced together with its queue once that is full."""
        if not self.queues:
            return sinkhorn(scores, self.epsilon, self.iterations)
        queue = self.queues[number]
        earlier = queue.features[rank() :: world_size()]  # the share of this process
        counted = torch.ones(len(earlier) + len(scores), dtype=torch.bool, device=scores.device)
        counted[: len(earlier)] = queue.enqueued >= self.queue_size
        together = torch.cat([self.prototypes(earlier), scores])
        return sinkhorn(together, self.epsilon, self.iterations, counted)[-len(scores) :]

    def _after_step(self) -> None:
        if not self.is_within(self.freeze_prototypes):
            self.prototypes.renormalize()
        if not self.is_within(self.queue_from):
            for queue in self.queues:
                queue.commit()

    def _before_epoch(self, epoch: int) -> None:
        run = self.run
        begins = count_steps(self.queue_from, run.total_steps, run.steps_per_epoch)
        if epoch == 0 and self.queues and begins >= run.total_steps:
            warnings.warn(
                f"queue_from={self.queue_from!r} is not before the end of this run of {run.total_steps} steps, so the queue is "
                'not used; pass for example queue_from="1 epochs".',
                stacklevel=2,
            )

    def _frozen(self) -> Iterable[nn.Parameter]:
        return self.prototypes.parameters() if self.is_within(self.freeze_prototypes) else ()

    @torch.no_grad()
    def _note_codes(self, scores: tuple[Tensor, ...], codes: list[Tensor]) -> None:
        self.note("code_entropy", torch.stack([_entropy(code).mean() for code in codes]).mean())
        predicted = softmax(torch.cat(scores[: self.n_views]) / self.temperature, dim=1)
        self.note("prototypes_used", _entropy(mean(predicted.mean(0))).exp())

    def _default_loss(self) -> SwAVLoss:
        return SwAVLoss(self.temperature)

    @property
    def chance_loss(self) -> float:
        """ln K: each prototype is as likely as any other."""
        return math.log(self.n_prototypes)


def _entropy(p: Tensor) -> Tensor:
    """The entropy of distributions (..., K)."""
    return torch.special.entr(p).sum(-1)
