"""IIC: clusters that two views of an image have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from superself.basics.distributed import total
from superself.basics.validate import require_count, require_positive, shortened
from superself.data import Batch
from superself.evaluation.extraction import open_at_size, read_in_order
from superself.losses.iic import IICLoss, joint_probabilities, mutual_information
from superself.networks import CombinedNet, MultiHead, build_backbone, feature_width
from superself.networks.modes import evaluation_mode
from superself.supervisor import Supervisor

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options

RECENT = 0.1  # weight of the last step in the running means of mutual information


class IICSupervisor(Supervisor):
    """Assigns the images to clusters such that the clusters of two views tell as much as possible about each other.

    L = -I(z, z'), the mutual information of the assignments of paired views, averaged over several heads; chance level: 0,
    and -ln K at best, when clusters are certain, equal for both views and of the same size. Epochs alternate between heads
    for more clusters than wanted, which find finer distinctions, and the heads for the clusters, see ``assign``.

    Source: Ji et al., Invariant Information Clustering, arXiv:1807.06653; settings of the authors' code for CIFAR-10.
    Deviations: crops keep between 40 % of the image and all of it, where the authors' have a fixed size, so that whole images
        are known too; every pair has its own first view; the Sobel filter is an option, ``sobel=True``.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        augment: makes two views; see Supervisor.
        clusters: K, as many as there are classes.
        over_clusters: of the other heads, 5 to 7 times as many in the paper; None leaves these out.
        heads: of each kind, with different initial weights.
        turns: epochs of the heads for more clusters, then of the heads for clusters; (1, 2) for CIFAR-10 in the authors' code.
        repeats: pairs of views of each image in a batch.
        lamb: weight of the marginals in the loss; above 1 it demands clusters of equal size more strongly.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        loss: of logits (heads, B, K) of the first and of the second views; None for minus the mutual information.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if a number is out of range, or ``augment`` does not make two views.
    """

    family = "clustering"
    paper = ("Ji et al. 2019", "https://arxiv.org/abs/1807.06653")
    good_for = "a known number of clusters, which `assign` gives; long runs"
    compares_images = True
    loss_meaning = "minus the mutual information of the clusters of two views; -ln K is perfect for K clusters"
    likely_causes = (
        "batches of fewer images than about 10 per cluster, so that the joint distribution is poorly known",
        "the learning rate is too high for this optimizer (the paper has 1e-4 with Adam)",
        "the views have nothing in common but colours, or the images are nearly all alike",
    )
    n_views = 2
    skips_parameters = True  # heads take turns

    def __init__(
        self,
        dataset: Any = None,
        augment: Any = "iic",
        clusters: int = 10,
        over_clusters: int | None = 70,
        heads: int = 5,
        turns: Sequence[int] = (1, 1),
        repeats: int = 3,
        lamb: float = 1.0,
        backbone: str | nn.Module | None = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(None, dataset, loss, collate_fn, augment=augment, **options)
        require_count("clusters", clusters, "is the number of clusters", minimum=2)
        if over_clusters is not None:
            require_count("over_clusters", over_clusters, "is the number of clusters of the other heads", minimum=2)
        require_count("heads", heads, "is the number of heads of each kind")
        require_count("repeats", repeats, "is the number of pairs of views of each image")
        require_positive("lamb", lamb, "is the weight of the marginals")
        if isinstance(turns, str) or not isinstance(turns, Sequence) or len(turns) != 2:
            raise ValueError(f"turns={shortened(turns)} must be two numbers of epochs, for example (1, 1).")
        for epochs in turns:
            require_count("each of turns", epochs, "is a number of epochs")
        self.clusters, self.over_clusters, self.heads, self.turns = clusters, over_clusters, heads, tuple(turns)
        self.repeats, self.lamb = repeats, lamb
        self.given.backbone = backbone
        self._information: Tensor | None = None  # of each head, for ``_after_step``

    def _build(self) -> None:
        self.loss = self.given.loss or IICLoss(self.lamb)
        backbone = build_backbone(self.given.backbone, self.network_shape)
        width = feature_width(backbone, self.network_shape)

        def linear_heads(clusters: int) -> MultiHead:
            return MultiHead(nn.Linear(width, clusters) for _ in range(self.heads))

        self.model = CombinedNet(backbone, linear_heads(self.clusters))
        self.over_heads = None if self.over_clusters is None else linear_heads(self.over_clusters)
        self.register_buffer("head_information", torch.zeros(self.heads))  # running mean of each head for the clusters

    @property
    def over_clusters_now(self) -> bool:
        """Whether this epoch is one of the heads for more clusters, which come first."""
        return self.over_heads is not None and self.epoch % sum(self.turns) < self.turns[0]

    def _forward(self, data: Batch) -> Tensor:
        pairs = [self.views(data) for _ in range(self.repeats)]
        heads = self.over_heads if self.over_clusters_now else self.model.predictor
        features = [
            self.model.features(torch.cat(views)) for views in zip(*pairs, strict=True)
        ]  # 2 of (repeats * B, D)
        first, second = (
            torch.stack([head(part) for head in heads]) for part in features
        )  # logits (heads, repeats * B, K)
        self._note_information(first.detach(), second.detach())
        return self.loss(first, second)

    @torch.no_grad()
    def _note_information(self, first: Tensor, second: Tensor) -> None:
        kind = "over_" if self.over_clusters_now else ""
        information = mutual_information(joint_probabilities(first, second))  # (heads,)
        counts = total(one_hot(first.argmax(2), first.shape[2]).sum(1))  # (heads, K)
        self.note(f"{kind}mutual_information", information)
        self.note(f"{kind}clusters_used", (counts > 0).float().sum(1))
        self._information = None if kind else information

    def _after_step(self) -> None:
        if self._information is not None:
            self.head_information.lerp_(self._information, RECENT)
            self._information = None

    @torch.no_grad()
    def assign(self, dataset: Any, head: int | None = None, batch_size: int = 256) -> Tensor:
        """The cluster (N,) of each image, from 0 to K - 1, in evaluation mode; -1 where an image cannot be read.

        Args:
            dataset: images, as for the constructor.
            head: number of the head; None takes the one whose mutual information was highest during training.
            batch_size: images at once; does not change the result.
        """
        self._require_model()
        if head is None:
            head = int(self.head_information.argmax())
        require_count("head", head, "is the number of a head", minimum=0, maximum=self.heads - 1)
        images = open_at_size(dataset, self.preprocessing.shape[1:], self.preprocessing.reading).load()
        found = []
        with evaluation_mode(self.model):
            for batch in read_in_order(images, batch_size):
                features = self.model.features(self.preprocessing(batch.images.to(self.device)))
                clusters = self.model.predictor[head](features).argmax(1).cpu()
                found.append(clusters.masked_fill(~batch.readable, -1))
        return torch.cat(found)

    @property
    def chance_loss(self) -> float | None:
        """0: the clusters of two views are independent; None with another lamb than 1, where it depends on their sizes."""
        return 0.0 if self.lamb == 1 else None
