"""JointEmbedding: base of the methods that compare embeddings of views."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from superself.augment import recipe
from superself.basics.distributed import from_rank_0, gather, rank, total, world_size
from superself.basics.random import preserve_random_state
from superself.data import BatchLoader
from superself.networks import MLP, CombinedNet, build_backbone, feature_width
from superself.networks.batch_norm import batch_norms, is_synchronized, split_batch_norm
from superself.networks.heads import check_head
from superself.networks.modes import batch_statistics, evaluation_mode
from superself.supervisor import Supervisor
from superself.training import Schedule

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options

Head = nn.Module | Mapping[str, Any] | None  # a projector or predictor: a module, arguments of MLP, or the method's own
LARGEST_BATCH = 256  # images that are embedded at once when a bank is filled


class JointEmbedding(Supervisor):
    """Backbone and projector in one network, ``self.model``, which maps views to embeddings.

    A subclass sets ``n_views``, the default of ``augment`` and the arguments of its heads, adds momentum encoders, queues or
    banks in ``_build`` after ``super()._build()``, writes ``_forward``, and moves what it added in ``_after_step``. A
    projector or predictor may be given as a dictionary of arguments of ``MLP``, which replace the method's own one by one:
    ``projector={"layers": 3, "norm": "batch"}``.

    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        projector: from features (B, D) to embeddings (B, E): a module, a dictionary of arguments of MLP, or None for the
            method's own.
        loss: None for the method's own.
    """

    n_views = 2
    projector_defaults: ClassVar[dict[str, Any]] = {"out_features": 128, "layers": 1}  # arguments of MLP
    predictor_defaults: ClassVar[dict[str, Any] | None] = (
        None  # of the online side's predictor, or None for methods without
    )

    def __init__(
        self,
        dataset: Any = None,
        backbone: str | nn.Module | None = None,
        projector: Head = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(None, dataset, loss, collate_fn, **options)
        check_head("projector", projector, self.named_projectors)
        self.given.backbone, self.given.projector, self.given.predictor = backbone, projector, None

    def _build(self) -> None:
        self.loss = self.given.loss or self._default_loss()
        backbone = self._make_backbone()
        self.model = CombinedNet(backbone, self._make_projector(feature_width(backbone, self.network_shape)))
        self.embedding_width = feature_width(self.model, self.network_shape)  # E
        if self.predictor_defaults is not None:
            self.predictor = self._make_predictor(self.embedding_width)

    def _default_loss(self) -> Callable[..., Tensor]:
        """The method's loss, made of its hyper-parameters."""
        raise TypeError(f"{type(self).__name__} defines no _default_loss(); write one, or pass loss=.")

    def _make_backbone(self) -> nn.Module:
        """The backbone for images of ``self.network_shape``."""
        return build_backbone(self.given.backbone, self.network_shape)

    def _make_projector(self, width: int) -> nn.Module:
        """The projector for features of this width: the one that was given, or the method's own."""
        return self._make_head(self.given.projector, width, self._projector_arguments(width))

    def _make_predictor(self, width: int) -> nn.Module:
        """The predictor for embeddings of this width: the one that was given, or the method's own."""
        return self._make_head(self.given.predictor, width, self._predictor_arguments(width))

    def _projector_arguments(self, width: int) -> dict[str, Any]:
        """The arguments of the method's own projector, for features of this width."""
        return self.projector_defaults

    def _predictor_arguments(self, width: int) -> dict[str, Any]:
        """The arguments of the method's own predictor, for embeddings of this width."""
        return {"out_features": width, **self.predictor_defaults}

    def _make_head(self, given: Any, width: int, defaults: Mapping[str, Any]) -> nn.Module:
        if isinstance(given, nn.Module):
            return given
        return MLP(width, **{**defaults, **(given if isinstance(given, Mapping) else {})})

    def _rising_momentum(self) -> float:
        """``self.momentum`` at this step: a number rises to 1 over the run by half a cosine, a Schedule says it itself."""
        return self.scheduled(self.momentum if isinstance(self.momentum, Schedule) else Schedule(self.momentum, 1.0))

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings (B, E) of preprocessed images (B, C, h, w)."""
        return self.model(images)

    def _embed_data_set(self) -> Tensor:
        """Embeddings (N, E) of all images without augmentation, in their order; batch norm uses each batch's statistics.

        Several processes share the work and get the same rows. The row of an image that cannot be read is 0.
        """
        return self._embed_in_order(batch_statistics)[0]

    @torch.no_grad()
    def _embed_in_order(
        self, norms: Callable[[nn.Module], contextlib.AbstractContextManager] = contextlib.nullcontext
    ) -> tuple[Tensor, Tensor]:
        """``_embed_data_set``, by default with running averages in batch norm, and which images can be read (N,)."""
        count = len(self.images)
        parts = torch.arange(count).tensor_split(math.ceil(count / LARGEST_BATCH))  # no part has a single image
        parts = parts[rank() :: world_size()]
        found = torch.zeros(
            count, self.embedding_width + 1, device=self.device
        )  # the last column: whether it is readable
        plain = recipe(None, self.view_shape[1:])  # images may be stored larger than the views
        with preserve_random_state(), evaluation_mode(self.model), norms(self.model), self.run.autocast():
            for places, data in zip(parts, BatchLoader(self.images, parts), strict=True):
                data, places = data.to(self.device), places.to(self.device)
                readable = data.index == places  # elsewhere another image stands in
                embeddings = self.embed(self.preprocessing(plain(data.images))).float()
                found[places[readable], :-1] = embeddings[readable]
                found[places[readable], -1] = 1
        found = total(found)
        return found[:, :-1], found[:, -1] > 0


class SplitBatchNorm:
    """For methods in which batch statistics would reveal the key of a query: batch norm sees ``splits`` parts of a batch.

    A part of the class, in front of JointEmbedding; the method sets ``splits``. In several processes the images of the keys
    are exchanged between them, which is shuffled batch norm; in one, queries and keys go through the network in random parts.

    Source: He et al., Momentum Contrast, arXiv:1911.05722, Sec. 3.3.
    """

    splits: int

    def _build(self) -> None:
        super()._build()
        self._has_batch_norm = bool(batch_norms(self.model))

    def _shuffled_batch_norm(self, network: nn.Module, views: Tensor) -> Tensor:
        """Embeddings (B, E) of views (B, C, h, w); batch norm sees them next to other images than their queries."""
        if world_size() == 1 or not self._splits_batch_norm:
            return self._split_batch_norm(network, views)
        order = torch.randperm(world_size() * len(views), generator=self.generator).to(views.device)
        order = from_rank_0(order)
        mine = slice(rank() * len(views), (rank() + 1) * len(views))
        with split_batch_norm(network, self._parts(len(views))):
            embeddings = network(gather(views)[order[mine]])
        return gather(embeddings)[order.argsort()[mine]]

    def _split_batch_norm(self, network: nn.Module, views: Tensor) -> Tensor:
        """Embeddings (B, E) of views (B, C, h, w); in train mode, batch norm sees a random part of the batch at a time."""
        parts = self._parts(len(views)) if self._splits_batch_norm else 1
        if parts < 2:
            return network(views)
        order = torch.randperm(len(views), generator=self.generator).to(views.device, non_blocking=True)
        with split_batch_norm(network, parts):
            embeddings = network(views[order])
        return embeddings[order.argsort()]

    @property
    def _splits_batch_norm(self) -> bool:
        """Whether batch norm sees parts of the batch; where it is synchronised, it sees the batch of all processes."""
        is_local = world_size() == 1 or not is_synchronized(self.model)
        return self.training and self._has_batch_norm and is_local

    def _parts(self, count: int) -> int:
        """Parts of the ``count`` images of this process, so that the batch of all processes has ``splits``."""
        return min(math.ceil(self.splits / world_size()), count // 2)
