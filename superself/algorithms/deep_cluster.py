"""DeepCluster: classify images by the clusters that their own features form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from superself.basics.clustering import kmeans, normalized_mutual_information, whiten
from superself.basics.distributed import from_rank_0
from superself.basics.validate import require_count
from superself.data import Batch
from superself.data.sampler import mix_entropy
from superself.joint_embedding import Head, JointEmbedding
from superself.losses.classification import NO_CLASS, known_cross_entropy

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options

INITIAL_SCALE = 0.01  # standard deviation of the classifier's weights after each clustering

PER_DIMENSION = 10  # images at least: whitened points of about as many dimensions all have the same distance


class DeepClusterSupervisor(JointEmbedding):
    """Clusters the features of all images before every epoch, and classifies augmented views by the cluster of their image.

    L = mean over images of the cross-entropy of the cluster; chance level: ln K for K clusters. Features are those before the
    last ReLU, of images without augmentation, in evaluation mode; principal components are whitened and scaled to unit length
    before k-means. Since clusters have no order, the classifier starts again after each clustering, as does what the optimizer
    stored for it. An epoch draws as many images as there are, with equal probability for every cluster.

    Source: Caron et al., Deep Clustering for Unsupervised Learning of Visual Features, arXiv:1807.05520; settings of the
        authors' code.
    Deviations: any backbone with a head of two linear layers, without dropout, in place of AlexNet or VGG; images are drawn
        independently, with replacement; the Sobel filter is an option, ``sobel=True``.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        augment: makes one view; see Supervisor.
        clusters: K; None for one per 128 images; small data sets get one per 10 images, up to 100.
        mult: epochs from one clustering to the next; more for small data sets.
        pca_dim: principal components that are kept, at most, and one for 10 images.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        projector: from features (B, D) to what is clustered (B, E); a module, a dictionary of arguments of MLP, or None.
        loss: of (logits (B, K), clusters (B,)); None for the cross-entropy. Images that could not be read have cluster -1.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if there are more clusters than images, or ``augment`` does not make one view.
    """

    family = "clustering"
    paper = ("Caron et al. 2018", "https://arxiv.org/abs/1807.05520")
    good_for = "data sets that fall into groups; any batch size; a constant learning rate"
    compares_images = False
    loss_meaning = "cross-entropy of the cluster that the image's features belong to; 0 is perfect"
    likely_causes = (
        "the clusters change too often for a small data set (pass a larger mult, so that an epoch's clusters are learnt)",
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "too many clusters for so few images, or the images are nearly all alike",
    )
    n_views = 1
    needs_index = True
    knows_its_images = True  # other images have no cluster
    projector_defaults = {"out_features": 512, "hidden": 512, "layers": 2}
    dataset_state = ("assignments", "times_clustered", "classifier")

    def __init__(
        self,
        dataset: Any = None,
        augment: Any = "resized-crop-flip",
        clusters: int | None = None,
        mult: int = 1,
        pca_dim: int = 256,
        backbone: str | nn.Module | None = None,
        projector: Head = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(dataset, backbone, projector, loss, collate_fn, augment=augment, **options)
        if clusters is not None:
            require_count("clusters", clusters, "is the number of clusters", minimum=2)
        require_count("mult", mult, "is the number of epochs from one clustering to the next")
        require_count("pca_dim", pca_dim, "is the number of principal components that are clustered")
        self.clusters, self.mult, self.pca_dim = clusters, mult, pca_dim
        self.cluster_count: int | None = None  # K

    def _build(self) -> None:
        super()._build()  # self.model = backbone and head up to its last linear layer
        self.cluster_count = choose_clusters(self.clusters, len(self.images))
        self.classifier = nn.Linear(self.embedding_width, self.cluster_count)
        any_clusters = torch.arange(max(1, len(self.images))) % self.cluster_count
        self.register_buffer("assignments", any_clusters)  # (N,) of each image; no meaning before the first clustering
        self.register_buffer("times_clustered", torch.zeros((), dtype=torch.long))  # how many there have been

    def _before_epoch(self, epoch: int) -> None:
        if epoch % self.mult and self.times_clustered:
            return
        generator = torch.Generator().manual_seed(mix_entropy(self.seed, epoch))  # the same in every process
        features, readable = self._embed_in_order()  # (N, E) before the ReLU, (N,)
        dimensions = min(self.pca_dim, max(2, int(readable.sum()) // PER_DIMENSION))
        found, _ = kmeans(whiten(features[readable], dimensions), self.cluster_count, generator)
        before = self.assignments.clone() if self.times_clustered else None
        self.assignments.fill_(NO_CLASS)
        self.assignments[readable] = from_rank_0(found)
        self.times_clustered += 1
        note_clustering(self, self.assignments, before)
        self._reset_classifier(generator)
        self._draw_clusters_equally()

    @torch.no_grad()
    def _reset_classifier(self, generator: torch.Generator) -> None:
        """New clusters: random weights, and nothing in the optimizer of the old ones, such as momenta."""
        weight = INITIAL_SCALE * torch.randn(self.classifier.weight.shape, generator=generator)
        self.classifier.weight.copy_(weight)
        self.classifier.bias.zero_()
        self.run.reset_optimizer_state(self.classifier)

    def _draw_clusters_equally(self) -> None:
        """Images are drawn with a weight of 1 / size of their cluster; those without a cluster are not drawn."""
        sampler = self.run.sampler
        if not hasattr(sampler, "set_weights"):  # a user's loader draws what its author wants
            return
        clusters = self.assignments.cpu()
        known = clusters != NO_CLASS
        sizes = clusters[known].bincount()
        weights = torch.zeros(len(clusters), dtype=torch.float64)
        weights[known] = 1 / sizes[clusters[known]].double()
        sampler.set_places(known.nonzero().squeeze(1))
        sampler.set_weights(weights)

    def _forward(self, data: Batch) -> Tensor:
        (view,) = self.views(data)  # (B, C, h, w)
        features = self.model(view)  # (B, E)
        logits = self.classifier(features.relu()).float()  # (B, K)
        clusters = self.assignments[data.index]  # (B,)
        self.note("accuracy", (logits.argmax(1) == clusters).float())
        return self.loss(logits, clusters)

    def _default_loss(self) -> Callable[..., Tensor]:
        return known_cross_entropy

    @property
    def chance_loss(self) -> float | None:
        """ln K: every cluster equally likely; None before the number of images is known."""
        return None if self.cluster_count is None else math.log(self.cluster_count)


def choose_clusters(clusters: int | None, images: int) -> int:
    """How many clusters to look for; by default one for 128 images, as the paper has on ImageNet, and more for small data sets.

    Raises:
        ValueError: if there are fewer images.
    """
    if clusters is None:
        return max(2, images // 128, min(100, images // 10))
    if clusters > images > 0:
        raise ValueError(
            f"clusters={clusters} is more than the {images} images; pass fewer, or None for a number that follows from that of "
            "the images."
        )
    return clusters


def note_clustering(supervisor: Any, now: Tensor, before: Tensor | None) -> None:
    """Notes how many clusters are used, and how far two successive clusterings of the same images agree.

    Args:
        supervisor: that notes it.
        now: the cluster of each image (N,), -1 for none.
        before: those of the clustering before, or None if there was none.
    """

    def note(name: str, value: float) -> None:
        supervisor.note(name, torch.tensor(value, device=supervisor.device))

    note("clusters_used", float(len(now[now != NO_CLASS].unique())))
    if before is not None:
        known = (now != NO_CLASS) & (before != NO_CLASS)
        note("nmi", normalized_mutual_information(now[known], before[known]) if known.any() else 0.0)
