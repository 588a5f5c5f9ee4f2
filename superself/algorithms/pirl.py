"""PIRL: an image and its puzzle belong to the same row of the memory bank."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from superself.augment import GridTiles, recipe
from superself.augment.recipes import pirl
from superself.losses import InfoNCE
from superself.networks import MLP, CombinedNet, MemoryBank, build_backbone, feature_width, tile_width
from superself.supervisor import Supervisor

CELL = 85 / 64  # of a tile: cells of 85 pixels and tiles of 64, in the authors' code
SOURCE = 255 / 224  # of the image: side of the image that is cut, in the authors' code


class JigsawHead(nn.Module):
    """Features of the tiles to one embedding: a linear layer on each tile, all in a row, a second linear layer.

    Source: Misra & van der Maaten, PIRL, arXiv:1912.01991, Sec. 2.3.
    Deviations: none.
    Args:
        in_features: D, width of a tile's features.
        out_features: E, width of the embedding, and of what the first layer gives for a tile.
        tiles: T.
    Shape:
        (B, T, D) -> (B, E).
    """

    def __init__(self, in_features: int, out_features: int, tiles: int) -> None:
        super().__init__()
        self.tile = nn.Linear(in_features, out_features)
        self.row = nn.Linear(tiles * out_features, out_features)

    def forward(self, features: Tensor) -> Tensor:
        """The embeddings of the puzzles."""
        return self.row(self.tile(features).flatten(1))


class PIRLSupervisor(Supervisor):
    """A view of each image, and tiles of another view in random order: both have to find the image's row in the memory bank.

    L = weight * NCE(m, g(tiles)) + (1 - weight) * NCE(m, f(view)): m is the image's row of the bank and the positive of both
    terms, NCE the cross-entropy of finding it among K rows of other images by cosine, divided by the temperature. Rows are
    moving averages of f(view) alone, so the features of a puzzle become those of the whole image. Chance is ln(K + 1), where K
    is at most N - 1. ``weight`` 0 is instance discrimination. A row is written once an epoch, so nothing is learnt before the
    second epoch.

    Source: Misra & van der Maaten, Self-Supervised Learning of Pretext-Invariant Representations, arXiv:1912.01991, Sec. 2.2
        (Eq. 5) and 2.3; sizes and number of negatives of the authors' configuration in VISSL.
    Deviations: the softmax over K + 1 in place of noise-contrastive estimation by binary decisions (Eq. 4), which VISSL offers as
        "cross_entropy"; one draw of negatives serves the whole batch; colours vary from image to image, not from tile to tile.
        Adam with lr 1e-3 was tried on CIFAR-10: 22 epochs over 250 images, batches of 32, are better than random weights
        (bench/RESULTS.md), 6 to 8 epochs over 1,000 are not.
    Args:
        dataset: see Supervisor, as are the options that are not listed here.
        augment: name of a recipe or transform that makes one view of a batch.
        tile_augment: the same for the view that is cut into tiles; None takes "pirl" with 0.6 to 1 of the area, at 255/224 of the
            size of the image, or larger where tiles need it.
        weight: of the tiles, lambda; the view has the rest.
        temperature: divides similarities.
        momentum: share of a row that is kept when its image is seen.
        negatives: K, rows drawn for each step; the whole bank where it is smaller, or for None.
        grid: tiles along each side.
        tile: side of a tile in pixels; None takes the authors' 64 for images of 224 and a grid of 3, in proportion (9 for 32);
            what is cut grows with it. A network that is built for one size of images takes tiles of that size only.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module; sees images and tiles.
        predictor: f, from features (B, D) to embeddings (B, E); None for the paper's linear layer with E = 128.
        jigsaw_head: g, from features of tiles (B, T, D), in random order, to embeddings (B, E); None for JigsawHead.
        loss: of (embedding (B, E), own row (B, E), rows (K, E), which of them are own (B, K)); None for the softmax.
    Shape:
        data: images (B, C, H, W) and their places (B,) -> loss ().
    Raises:
        ValueError: if a number is out of its range, or the backbone cannot take tiles.
    """

    family = "contrastive"
    loss_meaning = "cross-entropy of the image's row among others, for view and puzzle; 0 is perfect"
    likely_causes = (
        "too few epochs: an image's row is written once an epoch and starts at random (train longer, or on fewer images)",
        "the learning rate is too high for this optimiser (try a tenth of it)",
        "the images are nearly all alike, or the same image is there many times",
    )

    def __init__(
        self,
        dataset: Any = None,
        augment: str | Callable[..., Any] = "pirl",
        tile_augment: str | Callable[..., Any] | None = None,
        weight: float = 0.5,
        temperature: float = 0.07,
        momentum: float = 0.5,
        negatives: int | None = 32000,
        grid: int = 3,
        tile: int | None = None,
        backbone: str | nn.Module | None = None,
        predictor: nn.Module | None = None,
        jigsaw_head: nn.Module | None = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(None, dataset, loss or InfoNCE(temperature), collate_fn, **options)
        if not 0 <= weight <= 1:
            raise ValueError(f"weight={weight} is the share of the tiles in the loss; pass a number in [0, 1].")
        if negatives is not None and negatives < 1:
            raise ValueError(
                f"negatives={negatives} rows leave nothing to tell an image from; pass at least 1, or None."
            )
        if grid < 2 or (tile is not None and tile < 1):
            raise ValueError(
                f"grid={grid}, tile={tile} makes no puzzle; pass a grid of 2 or more, and tiles of 1 pixel or more."
            )
        size = self.images.shape[1:]
        tile = tile or default_tile(size, grid)
        self.weight, self.negatives = weight, negatives
        self.views = recipe(augment, size, views=1)
        source = source_size(size, grid, tile)
        self.tile_views = recipe(tile_augment or pirl(source, scale=(0.6, 1.0)), source, views=1)
        self.cut = GridTiles(grid, tile)

        backbone = build_backbone(backbone, self.images.shape)
        if predictor is None:
            predictor = MLP(feature_width(backbone, self.images.shape), 128, layers=1)
        self.model = CombinedNet(backbone, predictor)  # f
        width = feature_width(self.model, self.images.shape)
        remedy = f"tile={size[0]} if it is built for that one size, a larger tile"
        of_tile = tile_width(backbone, self.images.shape, tile, remedy)
        self.jigsaw_head = JigsawHead(of_tile, width, grid * grid) if jigsaw_head is None else jigsaw_head  # g
        self.bank = MemoryBank(len(self.images), width, momentum)

    @property
    def chance_loss(self) -> float:
        """ln of the number of candidates: any row is as likely as the own one."""
        return math.log(self.bank.candidates(self.negatives))

    def _forward(self, data: tuple[Tensor, Tensor]) -> Tensor:
        images, places = data
        (view,) = self.views(images, self.generator)  # I (B, C, H, W)
        embedding = self.model(self.preprocessing(view))  # f(v_I) (B, E)
        features = self.model.features(self.preprocessing(self._puzzles(images).flatten(0, 1)))  # (B * T, D)
        puzzle = self.jigsaw_head(features.unflatten(0, (len(images), -1)))  # g(v_It) (B, E)
        row = self.bank.rows(places)  # m_I (B, E)
        negatives, own = self.bank.negatives(places, self.negatives, self.generator)
        self.bank.remember(embedding, places)
        of_puzzle, of_view = (self.loss(e.float(), row, negatives, own) for e in (puzzle, embedding))
        return self.weight * of_puzzle + (1 - self.weight) * of_view  # Eq. 5

    def _puzzles(self, images: Tensor) -> Tensor:
        """Tiles (B, T, C, t, t) of a view of each image, for every image in an order of its own."""
        (view,) = self.tile_views(images, self.generator)
        tiles = self.cut(view, self.generator)  # (B, T, C, t, t), row by row
        order = torch.rand(tiles.shape[:2], generator=self.generator).argsort(1).to(tiles.device, non_blocking=True)
        return tiles[torch.arange(len(tiles), device=tiles.device)[:, None], order]

    def _update(self, loss: Tensor, optimizer: Optimizer, lr_scheduler: Any) -> None:
        super()._update(loss, optimizer, lr_scheduler)
        self.bank.commit()


def default_tile(size: tuple[int, int], grid: int) -> int:
    """Side of a tile in the authors' proportions: it shows things as large as the image does."""
    return max(1, round(min(size) * SOURCE / grid / CELL))


def source_size(size: tuple[int, int], grid: int, tile: int) -> tuple[int, int]:
    """Height and width, in the proportions of the image, of what is cut into a grid of cells for tiles of this side."""
    cell = math.ceil(tile * CELL)
    return tuple(round(side * grid * cell / min(size)) for side in size)
