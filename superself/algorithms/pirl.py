"""PIRL: an image and its jigsaw puzzle belong to the same row of the memory bank."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from superself.augment import GridTiles, recipe
from superself.augment.recipes import pirl
from superself.basics.validate import require_count, require_fraction, require_positive
from superself.data import Batch
from superself.joint_embedding import Head, JointEmbedding
from superself.losses import InfoNCE
from superself.networks import MemoryBank, tile_width

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options

CELL = 85 / 64  # of a tile: cells of 85 pixels and tiles of 64, in the authors' code
SOURCE = 255 / 224  # of the image: side of the image that is cut, in the authors' code


class PIRLSupervisor(JointEmbedding):
    """A view of each image, and tiles of another view in random order: both have to find the image's row in the memory bank.

    L = weight * NCE(m, g(tiles)) + (1 - weight) * NCE(m, f(view)): m is the image's row of the bank and the positive of both
    terms, NCE the cross-entropy of finding it among K rows of other images by cosine / temperature; chance level: ln(K + 1).
    Rows are moving averages of f(view) alone, so the features of a puzzle approach those of the whole image.

    Source: Misra & van der Maaten, Self-Supervised Learning of Pretext-Invariant Representations, arXiv:1912.01991, Sec. 2.2
        (Eq. 5) and 2.3; sizes and number of negatives of the authors' configuration in VISSL.
    Deviations: a softmax over K + 1 instead of binary noise-contrastive estimation (Eq. 4); one draw of negatives per batch;
        colours vary from image to image, not from tile to tile; rows start as embeddings by the untrained network.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        augment: makes the view; see Supervisor.
        tile_augment: makes the view that is cut into tiles; None or True takes "pirl" with 0.6 to 1 of the area, at 255/224
            of the size of the image, or larger if the tiles need it.
        weight: lambda, of the term with the tiles; the view has the rest. 0 is instance discrimination.
        temperature: divides similarities.
        momentum: fraction of a row that is kept when its image is seen.
        negatives: K, rows drawn for each step; the whole bank if it is smaller, or for None.
        grid: tiles along each side.
        tile: side of a tile in pixels; None takes the authors' proportion (64 for images of 224 and a grid of 3; 9 for 32).
            A network with a fixed input size only takes tiles of that size.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module; sees images and tiles.
        projector: f, from features (B, D) to embeddings (B, E): a module, a dictionary of arguments of MLP, or None for the
            paper's linear layer with E = 128.
        jigsaw_head: g, from features of tiles (B, T, D), in random order, to embeddings (B, E); None for JigsawHead.
        loss: called with embedding (B, E), the image's row (B, E), rows (K, E) and which of these are the image's own (B, K);
            None for the softmax.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if a number is out of range, or the backbone cannot take tiles.
    """

    family = "contrastive"
    paper = ("Misra & van der Maaten 2020", "https://arxiv.org/abs/1912.01991")
    good_for = "like instance discrimination, with tiles of the image in addition; a step costs twice as much"
    compares_images = False
    loss_meaning = "cross-entropy of the image's row among others, for view and puzzle; 0 is perfect"
    likely_causes = (
        "too few epochs: an image's row changes once per epoch (train longer, or on fewer images)",
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "the images are nearly all alike, or the data set has many duplicates",
    )
    n_views = 1
    needs_index = True

    def __init__(
        self,
        dataset: Any = None,
        augment: Any = "pirl",
        tile_augment: Any = None,
        weight: float = 0.5,
        temperature: float = 0.07,
        momentum: float = 0.5,
        negatives: int | None = 32000,
        grid: int = 3,
        tile: int | None = None,
        backbone: str | nn.Module | None = None,
        projector: Head = None,
        jigsaw_head: nn.Module | None = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(dataset, backbone, projector, loss, collate_fn, augment=augment, **options)
        require_fraction("weight", weight, "is the weight of the tiles in the loss")
        require_positive("temperature", temperature, "divides similarities")
        require_fraction("momentum", momentum, "is the fraction of a row that is kept", upper_open=True)
        if negatives is not None:
            require_count("negatives", negatives, "is the number of rows drawn for each step")
        require_count("grid", grid, "is the number of tiles along each side", minimum=2)
        if tile is not None:
            require_count("tile", tile, "is the side of a tile in pixels")
        self.weight, self.temperature, self.momentum, self.negatives = weight, temperature, momentum, negatives
        self.tile_augment, self.grid, self.tile = tile_augment, grid, tile
        self.given.jigsaw_head = jigsaw_head

    def _build(self) -> None:
        super()._build()  # self.model = f
        side = self.tile or default_tile(self.network_shape[1:], self.grid)
        remedy = f"tile={self.network_shape[1]} if it has a fixed input size, otherwise a larger tile"
        width = tile_width(self.model.backbone, self.network_shape, side, remedy)
        head = self.given.jigsaw_head
        self.jigsaw_head = JigsawHead(width, self.embedding_width, self.grid**2) if head is None else head  # g
        self.bank = MemoryBank(len(self.images), self.embedding_width, self.momentum)

    def _build_views(self) -> None:
        super()._build_views()
        size = self.view_shape[1:]
        side = self.tile or default_tile(size, self.grid)
        source = source_size(size, self.grid, side)
        default = pirl(source, scale=(0.6, 1.0))
        augment = default if self.tile_augment is None else self.tile_augment
        self.tile_augmentation = recipe(augment, source, views=1, default=default)
        self.cut = GridTiles(self.grid, side)

    def _before_epoch(self, epoch: int) -> None:
        if not self.bank.filled:
            self.bank.fill(self._embed_data_set())

    def _forward(self, data: Batch) -> Tensor:
        (view,) = self.views(data)  # I (B, C, h, w)
        embedding = self.model(view)  # f(v_I) (B, E)
        features = self.model.features(self.preprocessing(self._puzzles(data.images).flatten(0, 1)))  # (B * T, D)
        puzzle = self.jigsaw_head(features.unflatten(0, (len(data), -1)))  # g(v_It) (B, E)
        row = self.bank.rows(data.index)  # m_I (B, E)
        negatives, own = self.bank.negatives(data.index, self.negatives, self.generator)
        puzzle_loss, view_loss = (self.loss(e.float(), row, negatives, own) for e in (puzzle, embedding))
        self.note("puzzle_loss", puzzle_loss)
        self.note("view_loss", view_loss)
        self.bank.remember(embedding, data.index)  # written after the step
        return self.weight * puzzle_loss + (1 - self.weight) * view_loss  # Eq. 5

    def _after_step(self) -> None:
        self.bank.commit()

    def _puzzles(self, images: Tensor) -> Tensor:
        """Tiles (B, T, C, t, t) of a view of each image, in a different random order for every image."""
        (view,) = self.tile_augmentation(images, self.generator)
        tiles = self.cut(view, self.generator)  # (B, T, C, t, t), row by row
        order = torch.rand(tiles.shape[:2], generator=self.generator).argsort(1).to(tiles.device, non_blocking=True)
        return tiles[torch.arange(len(tiles), device=tiles.device)[:, None], order]

    def _default_loss(self) -> InfoNCE:
        return InfoNCE(self.temperature)

    @property
    def chance_loss(self) -> float:
        """ln of the number of candidates: every row is as likely as the image's own."""
        return math.log(self.bank.candidates(self.negatives))


class JigsawHead(nn.Module):
    """Features of the tiles to one embedding: a linear layer on each tile, concatenated, then a second linear layer.

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


def default_tile(size: tuple[int, int], grid: int) -> int:
    """Side of a tile in the authors' proportions: it shows things as large as the image does."""
    return max(1, round(min(size) * SOURCE / grid / CELL))


def source_size(size: tuple[int, int], grid: int, tile: int) -> tuple[int, int]:
    """Height and width, in the proportions of the image, of what is cut into a grid of cells for tiles of this side."""
    cell = math.ceil(tile * CELL)
    return tuple(round(side * grid * cell / min(size)) for side in size)
