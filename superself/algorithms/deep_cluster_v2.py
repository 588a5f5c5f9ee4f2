"""DeepCluster-v2: classify views by the centroids of the embeddings of the epoch before."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from superself.algorithms.deep_cluster import choose_clusters, note_clustering
from superself.augment import Views, recipe
from superself.basics.clustering import kmeans
from superself.basics.distributed import from_rank_0
from superself.basics.validate import require_count, require_positive
from superself.data import Batch
from superself.data.sampler import mix_entropy
from superself.joint_embedding import Head, JointEmbedding
from superself.losses.classification import NO_CLASS, known_cross_entropy
from superself.networks import MemoryBank

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options

ITERATIONS = 10  # of k-means
FOR_CLUSTERS = 2  # the first views of an image are clustered, one memory for each


class DeepClusterV2Supervisor(JointEmbedding):
    """Clusters the embeddings of the epoch before, and finds the centroid of an image's cluster from each of its views.

    L = -log exp(z . c_i / t) / sum_j exp(z . c_j / t), averaged over views, images and several clusterings: z is the embedding
    of a view and c_i the centroid of the image's cluster, all of unit length; chance level: ln K for K clusters. A memory keeps
    the embeddings of the first two views as they pass by; before an epoch, spherical k-means on it gives the clusters and the
    weights of the classifier, which are never trained. So nothing is reset, and the images are not read a second time.

    Source: Caron et al., SwAV, arXiv:2006.09882, where it is the baseline DeepCluster-v2; settings of the authors' code.
    Deviations: the memory starts with embeddings of images without augmentation; empty clusters are filled again.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        augment: makes two or more views; "swav" makes two large and six small ones. See Supervisor.
        clusters: K of every clustering, 3000 in the paper; None for one per 128 images; small data sets get one per 10
            images, up to 100.
        clusterings: of different initialisation, each with its own prototypes; they take turns with the memories.
        temperature: t, divides similarities.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        projector: from features (B, D) to embeddings (B, E); a module, a dictionary of arguments of MLP, or None.
        loss: of (logits (M, K), clusters (M,)), M the number of clusterings x views x images; None for the cross-entropy. Images
            that could not be read have cluster -1.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if there are more clusters than images, or ``augment`` makes fewer than two views.
    """

    family = "clustering"
    paper = ("Caron et al. 2020", "https://arxiv.org/abs/2006.09882")
    good_for = "the same for long runs, without a second pass over the images"
    compares_images = False
    loss_meaning = "cross-entropy of the cluster that the image's embedding belonged to an epoch before; 0 is perfect"
    likely_causes = (
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "too many clusters for so few images, or the images are nearly all alike",
        "the run is too short: clusters follow the embeddings once per epoch",
    )
    needs_index = True
    knows_its_images = True  # other images have no cluster
    presets = {"deep-cluster-v2": {}}
    projector_defaults = {"out_features": 128, "hidden": 2048, "norm": "batch"}
    dataset_state = ("assignments", "prototypes", "times_clustered")

    def __init__(
        self,
        dataset: Any = None,
        augment: Any = "simclr",
        clusters: int | None = None,
        clusterings: int = 3,
        temperature: float = 0.1,
        backbone: str | nn.Module | None = None,
        projector: Head = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(dataset, backbone, projector, loss, collate_fn, augment=augment, **options)
        if clusters is not None:
            require_count("clusters", clusters, "is the number of clusters", minimum=2)
        require_count("clusterings", clusterings, "is the number of clusterings of different initialisation")
        require_positive("temperature", temperature, "divides similarities")
        self.clusters, self.clusterings, self.temperature = clusters, clusterings, temperature
        self.cluster_count: int | None = None  # K

    def _build(self) -> None:
        super()._build()  # self.model
        count = max(1, len(self.images))
        self.cluster_count = choose_clusters(self.clusters, len(self.images))
        self.memories = nn.ModuleList(
            MemoryBank(count, self.embedding_width, momentum=0.0) for _ in range(FOR_CLUSTERS)
        )
        prototypes = normalize(torch.randn(self.clusterings, self.cluster_count, self.embedding_width), dim=2)
        self.register_buffer("prototypes", prototypes)  # (H, K, E), the centroids
        any_clusters = torch.arange(count) % self.cluster_count
        self.register_buffer("assignments", any_clusters.repeat(self.clusterings, 1))  # (H, N) of each image
        self.register_buffer("times_clustered", torch.zeros((), dtype=torch.long))

    def _build_views(self) -> None:
        made = recipe(self.augment, self.view_shape[1:], default="simclr")
        self.n_views = len(made.transforms) if isinstance(made, Views) else FOR_CLUSTERS
        if self.n_views < FOR_CLUSTERS:
            raise ValueError(
                f"augment makes {self.n_views} view of each image, and {type(self).__name__} needs at least two; pass Views with "
                "two transforms or more, or the name of a recipe."
            )
        super()._build_views()

    def _before_epoch(self, epoch: int) -> None:
        if not self.memories[0].filled:
            embeddings = self._embed_data_set()
            for memory in self.memories:
                memory.fill(embeddings)
        generator = torch.Generator().manual_seed(mix_entropy(self.seed, epoch))  # the same in every process
        before = self.assignments[0].clone() if self.times_clustered else None
        self.assignments.fill_(NO_CLASS)
        for number, (assignments, prototypes) in enumerate(zip(self.assignments, self.prototypes, strict=True)):
            rows = self.memories[number % FOR_CLUSTERS].features  # (N, E)
            known = rows.any(1)  # the rows of images that could not be read are 0
            found, centroids = kmeans(rows[known], self.cluster_count, generator, ITERATIONS, spherical=True)
            assignments[known] = from_rank_0(found)
            prototypes.copy_(from_rank_0(centroids))
        self.times_clustered += 1
        note_clustering(self, self.assignments[0], before)

    def _forward(self, data: Batch) -> Tensor:
        views = self.views(data)  # V of (B, C, h, w)
        embeddings = [normalize(self.model(view).float(), dim=1) for view in views]
        for memory, embedding in zip(self.memories, embeddings, strict=False):
            memory.remember(embedding, data.index)  # written after the step
        with torch.autocast(self.device.type, enabled=False):
            logits = torch.cat(embeddings) @ self.prototypes.mT / self.temperature  # (H, V * B, K)
        clusters = self.assignments[:, data.index].repeat(1, len(views))  # (H, V * B)
        self.note("accuracy", (logits.argmax(2) == clusters).float())
        return self.loss(logits.flatten(0, 1), clusters.flatten())

    def _after_step(self) -> None:
        for memory in self.memories:
            memory.commit()

    def _default_loss(self) -> Callable[..., Tensor]:
        return known_cross_entropy

    @property
    def chance_loss(self) -> float | None:
        """ln K: every cluster equally likely; None before the number of images is known."""
        return None if self.cluster_count is None else math.log(self.cluster_count)
