"""MultiCropEmbedding: base of the joint embeddings that see two large views of an image and any number of small ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from superself.augment import RECIPES, Lambda, Transform, Views, recipe
from superself.basics.validate import require_count
from superself.joint_embedding import Head, JointEmbedding
from superself.networks import CombinedNet
from superself.networks.modes import evaluation_mode

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options


class MultiCropEmbedding(JointEmbedding):
    """A joint embedding of two large views and, after them, any number of small ones, as ``augment`` makes them.

    Source: Caron et al., SwAV, arXiv:2006.09882, "multi-crop".
    Args:
        dataset: see JointEmbedding, also for the options that are not listed here.
        small_crops: how many small views a recipe such as "swav" makes, in place of its ``small_count``; None leaves it to the
            recipe.
    Raises:
        ValueError: if ``small_crops`` is negative, or ``augment`` is not a recipe that makes small views.
    """

    n_views = 2  # the large ones
    more_views = True

    def __init__(
        self,
        dataset: Any = None,
        backbone: str | nn.Module | None = None,
        projector: Head = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        small_crops: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(dataset, backbone, projector, loss, collate_fn, **options)
        if small_crops is not None:
            require_count("small_crops", small_crops, "is the number of small views of an image", minimum=0)
        self.small_crops = small_crops
        self._sizes: set[tuple[int, ...]] = set()  # of views that the backbone has been seen to take

    def _make_augmentation(self, default: Any) -> Transform:
        size, augment = self.view_shape[1:], default if self.augment is True else self.augment
        made = recipe(augment, size)
        if self.small_crops is not None:
            made = self._with_small_crops(augment, made)
        return made if isinstance(made, (Views, Lambda)) else Views(made, self.n_views)

    def _with_small_crops(self, augment: Any, made: Transform) -> Transform:
        """What the recipe ``augment`` makes with this number of small views, or ``made`` if it needs none."""
        arguments = {"name": augment} if isinstance(augment, str) else augment
        named = isinstance(arguments, Mapping)
        if named and "small_count" in inspect.signature(RECIPES[arguments["name"]]).parameters:
            return recipe({**arguments, "small_count": self.small_crops}, self.view_shape[1:])
        if self.small_crops:
            raise ValueError(
                f"small_crops={self.small_crops} needs a recipe that makes small views, 'swav' or 'dino', and augment is "
                f"{augment if named else type(augment).__name__!r}; leave small_crops out, or pass such a recipe."
            )
        return made

    def _embed_views(self, network: CombinedNet, views: Sequence[Tensor]) -> Tensor:
        """Embeddings (V * B, E) of V views, each (B, C, h, w), in their order.

        As in the authors' code of SwAV and DINO, batch norm of the backbone sees all views of a size together, and that of
        the projector all views.
        """
        groups = [list(group) for _, group in groupby(views, lambda view: view.shape[2:])]
        for group in groups:
            self._require_size(network, group[0])
        return network.predictor(torch.cat([network.features(torch.cat(group)) for group in groups]))

    def _require_size(self, network: CombinedNet, view: Tensor) -> None:
        """Raises a ValueError if the backbone takes images of one size only, and these views have another."""
        size = tuple(view.shape[2:])
        if size in self._sizes or size == self.network_shape[1:]:
            return
        try:
            with torch.no_grad(), evaluation_mode(network.backbone):
                network.features(view[:1])
        except (AssertionError, RuntimeError, ValueError) as error:
            height, width = self.network_shape[1:]
            raise ValueError(
                f"the backbone {type(network.backbone).__name__}, built for images of {height} x {width}, cannot take the "
                f"views of {size[0]} x {size[1]} ({error}); pass small_crops=0, or one that takes any size, such as a ResNet "
                "or timm.create_model(NAME, img_size=..., dynamic_img_size=True, num_classes=0)."
            ) from error
        self._sizes.add(size)
