"""JointEmbedding: base of the methods that compare embeddings of views."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from superself.augment import recipe
from superself.basics.distributed import rank, total, world_size
from superself.basics.random import preserve_random_state
from superself.data import BatchLoader
from superself.networks import MLP, CombinedNet, build_backbone, feature_width
from superself.networks.modes import batch_statistics, evaluation_mode
from superself.supervisor import Supervisor

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options

LARGEST_BATCH = 256  # images that are embedded at once when a bank is filled


class JointEmbedding(Supervisor):
    """Backbone and projector in one network, ``self.model``, which maps views to embeddings.

    A subclass sets ``n_views`` and the default of ``augment``, adds predictors, momentum encoders, queues or banks in
    ``_build`` after ``super()._build()``, writes ``_forward``, and moves what it added in ``_after_step``.

    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module.
        projector: from features (B, D) to embeddings (B, E); None for the method's own.
        loss: None for the method's own.
    """

    n_views = 2
    named_projectors: ClassVar[tuple[str, ...]] = ()  # what may be passed as projector= besides a module

    def __init__(
        self,
        dataset: Any = None,
        backbone: str | nn.Module | None = None,
        projector: nn.Module | None = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(None, dataset, loss, collate_fn, **options)
        self.given.backbone, self.given.projector = backbone, projector

    def _build(self) -> None:
        self.loss = self.given.loss or self._default_loss()
        backbone = build_backbone(self.given.backbone, self.network_shape)
        projector = self.given.projector
        if projector is None or projector in self.named_projectors:
            projector = self._default_projector(feature_width(backbone, self.network_shape))
        self.model = CombinedNet(backbone, projector)
        self.embedding_width = feature_width(self.model, self.network_shape)  # E

    def _default_loss(self) -> Callable[..., Tensor]:
        """The method's loss, made of its hyper-parameters."""
        raise TypeError(f"{type(self).__name__} defines no _default_loss(); write one, or pass loss=.")

    def _default_projector(self, width: int) -> nn.Module:
        """The projector for features of this width; a linear layer with E = 128 unless a method says otherwise."""
        return MLP(width, 128, layers=1)

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings (B, E) of preprocessed images (B, C, h, w)."""
        return self.model(images)

    @torch.no_grad()
    def _embed_data_set(self) -> Tensor:
        """Embeddings (N, E) of all images without augmentation, in their order; batch norm uses each batch's statistics.

        Several processes share the work and get the same rows. The row of an image that cannot be read is 0.
        """
        count = len(self.images)
        parts = torch.arange(count).tensor_split(math.ceil(count / LARGEST_BATCH))  # no part has a single image
        parts = parts[rank() :: world_size()]
        found = torch.zeros(count, self.embedding_width, device=self.device)
        plain = recipe(None, self.view_shape[1:])  # images may be stored larger than the views
        with preserve_random_state(), evaluation_mode(self.model), batch_statistics(self.model), self.run.autocast():
            for places, data in zip(parts, BatchLoader(self.images, parts), strict=True):
                data, places = data.to(self.device), places.to(self.device)
                readable = data.index == places  # elsewhere another image stands in
                embeddings = self.embed(self.preprocessing(plain(data.images))).float()
                found[places[readable]] = embeddings[readable]
        return total(found)
