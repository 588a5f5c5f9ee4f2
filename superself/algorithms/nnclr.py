"""NNCLR: the positive of an image is its nearest neighbour among earlier images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from superself.basics.distributed import gather, own_rows
from superself.basics.validate import require_count, require_positive
from superself.data import Batch
from superself.joint_embedding import Head, JointEmbedding
from superself.losses import InfoNCE
from superself.networks import FeatureQueue
from superself.networks.heads import check_head

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options


class NNCLRSupervisor(JointEmbedding):
    """The nearest neighbour of one view, among images of earlier batches, finds the prediction of the other view in the batch.

    L = -log exp(NN(z_i).p_i / t) / sum_k exp(NN(z_i).p_k / t), averaged over images and both directions: z is the embedding of
    one view, NN(z) the row of a queue that is nearest to it, p_k the predictions of the other view of the N images of the
    batches of all processes; chance level: ln N. The queue takes the embeddings of the first view after the step.

    Source: Dwibedi et al., With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning of Visual
        Representations, arXiv:2104.14548.
    Deviations: a queue of 4096 instead of 98304 rows, unless the preset "nnclr-paper" is used; rows that show the image itself
        are not its neighbours; any optimizer instead of LARS; views without blur up to 32 pixels.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        augment: makes two views; see Supervisor.
        queue_size: rows that neighbours are chosen from.
        temperature: t, divides similarities.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        projector: from features (B, D) to embeddings (B, E); a module, a dictionary of arguments of MLP, or None for the
            paper's layers of 2048, 2048 and 256 with batch norm after each.
        predictor: from embeddings (B, E) to predictions (B, E), likewise; None for the paper's layers of 4096 and E.
        loss: called with neighbour (B, E), prediction (B, E), predictions of all images (N, E) of unit length, and which of
            these are the image's own (B, N); None for InfoNCE.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if an argument is out of range, or ``augment`` does not make two views.
    """

    projector_defaults = {"out_features": 256, "hidden": 2048, "layers": 3, "norm": "batch", "last_norm": "batch"}
    predictor_defaults = {"hidden": 4096, "norm": "batch"}
    family = "contrastive"
    paper = ("Dwibedi et al. 2021", "https://arxiv.org/abs/2104.14548")
    good_for = "data with many images of each kind; positives beyond augmentation"
    compares_images = True
    loss_meaning = "cross-entropy of finding the image's prediction in the batch by its nearest neighbour; 0 is perfect"
    likely_causes = (
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "the queue is too short, or the run too short to fill it, for neighbours that show the same kind of thing",
        "the images are nearly all alike",
    )
    presets = {"nnclr-paper": {"queue_size": 98304}}

    def __init__(
        self,
        dataset: Any = None,
        augment: Any = "simclr",
        queue_size: int = 4096,
        temperature: float = 0.1,
        backbone: str | nn.Module | None = None,
        projector: Head = None,
        predictor: Head = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(dataset, backbone, projector, loss, collate_fn, augment=augment, **options)
        require_count("queue_size", queue_size, "is the number of embeddings that neighbours are chosen from")
        require_positive("temperature", temperature, "divides similarities")
        self.queue_size, self.temperature = queue_size, temperature
        check_head("predictor", predictor)
        self.given.predictor = predictor

    def _build(self) -> None:
        super()._build()
        self.queue = FeatureQueue(self.queue_size, self.embedding_width)

    def _forward(self, data: Batch) -> Tensor:
        embeddings = [self.model(view) for view in self.views(data)]  # z, each (B, E)
        first, second = (self.predictor(z) for z in embeddings)  # p, each (B, E)
        own_rows = None if data.index is None else self.queue.same_image(data.index)  # (B, K)
        neighbours = [self._neighbours(z, own_rows) for z in embeddings]
        loss = (self._loss_one_direction(neighbours[0], second) + self._loss_one_direction(neighbours[1], first)) / 2
        self.queue.remember(embeddings[0], data.index)  # enqueued after the step
        self.note("queue_filled", self.queue.filled)
        return loss

    def _loss_one_direction(self, neighbours: Tensor, predictions: Tensor) -> Tensor:
        everyone = normalize(gather(predictions.float()), dim=1)  # (N, E)
        return self.loss(neighbours, predictions, everyone, own_rows(predictions))

    @torch.no_grad()
    def _neighbours(self, embeddings: Tensor, excluded: Tensor | None) -> Tensor:
        """The rows (B, E) of the queue with the largest cosine to embeddings (B, E), except those that are excluded (B, K)."""
        with torch.autocast(embeddings.device.type, enabled=False):
            cosines = normalize(embeddings.float(), dim=1) @ self.queue.features.T  # (B, K)
        if excluded is not None:
            cosines = cosines.masked_fill(excluded, -torch.inf)
        nearest, rows = cosines.max(1)
        self.note("neighbour_cosine", nearest)
        return self.queue.features[rows]

    def _after_step(self) -> None:
        self.queue.commit()

    def _default_loss(self) -> InfoNCE:
        return InfoNCE(self.temperature)

    @property
    def chance_loss(self) -> float | None:
        """ln N: all images of the batch are equally likely; None before its size is known."""
        return None if self.run is None else math.log(self.run.settings.batch_size)
