"""Jigsaw: in which order are the tiles of the image?"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from superself.augment import GridTiles, RandomGrayscale
from superself.augment.permutations import permutation_set
from superself.basics.validate import require_bool, require_choice, require_count, require_fraction
from superself.data import Batch, to_float
from superself.evaluation import show_columns
from superself.networks import MLP, CombinedNet, build_backbone, tile_width
from superself.supervisor import Supervisor

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options


class JigsawNetSupervisor(Supervisor):
    """Cuts each image into tiles, orders them by one of a set of permutations, and classifies the permutation.

    L = mean over images and their puzzles of the cross-entropy of the predicted permutation; chance level: ln K for K
    permutations. To prevent shortcuts, a tile is smaller than its cell and at a random position in it, is standardised on
    its own, has its colour channels shifted against each other, and is sometimes grey. The backbone sees one tile at a
    time and the head all features in the permuted order (the context-free network), so the puzzles of an image share
    their features.

    Source: Noroozi & Favaro, Jigsaw, arXiv:1603.09246.
    Deviations: 2 x 2 tiles and all 24 permutations, for small images (the paper: ``grid=3, n_permutations=1000``); several
        puzzles share the tiles of an image; whole images are cut, not crops; tiles, not images, become grey; the set of
        permutations keeps the smallest distance large too, see ``permutation_set``.
    Args:
        dataset: see Supervisor, also for the options that are not listed here. Padding in ``augment`` would be a shortcut.
        grid: tiles along each axis, 2 or 3.
        n_permutations: K, as different from each other as possible; all of them if there are fewer.
        n_permutations_per_image: puzzles of each image in a step, all different.
        tile: side of a tile as a fraction of its cell's.
        channel_jitter: largest shift of each channel of a tile, as a fraction of its side.
        greyscale: fraction of the tiles that become grey.
        whole: give the backbone the whole puzzle as one image instead of one tile at a time.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module; sees tiles and, later, images.
        predictor: from the concatenated features of the tiles (B, T * D), or from those of the whole (B, D), to logits
            (B, K); None for an MLP.
        loss: of (logits (B, K), targets (B,)); None for the cross-entropy.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if the hyper-parameters make no puzzle, or images are too small for the grid.
    """

    presets = {"jigsaw-paper": {"grid": 3, "n_permutations": 1000, "n_permutations_per_image": 1}}
    family = "patch"
    paper = ("Noroozi & Favaro 2016", "https://arxiv.org/abs/1603.09246")
    good_for = "images with a layout: centred objects, scenes, faces; not textures"
    compares_images = False
    loss_meaning = "cross-entropy of the permutation; 0 is perfect"
    likely_causes = (
        "the images look alike everywhere (textures, microscopy), so that tiles have no typical position",
        "the task is too hard for so short a run (pass grid=2 or fewer n_permutations)",
        "the learning rate is too high for this optimizer (try a tenth of it)",
    )

    def __init__(
        self,
        dataset: Any = None,
        grid: int = 2,
        n_permutations: int = 100,
        n_permutations_per_image: int = 4,
        tile: float = 64 / 75,
        channel_jitter: float = 2 / 64,
        greyscale: float = 0.3,
        whole: bool = False,
        backbone: str | nn.Module | None = None,
        predictor: nn.Module | None = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(None, dataset, loss, collate_fn, **options)
        require_choice("grid", grid, (2, 3))
        require_count("n_permutations", n_permutations, "is the number of permutations to tell apart", minimum=2)
        require_fraction("tile", tile, "is the side of a tile as a fraction of its cell's", lower_open=True)
        require_fraction("channel_jitter", channel_jitter, "is the largest shift as a fraction of a tile's side")
        require_fraction("greyscale", greyscale, "is the fraction of tiles that are made grey")
        require_count("n_permutations_per_image", n_permutations_per_image, "is the number of puzzles per image")
        require_bool("whole", whole, "gives the backbone the whole puzzle")
        most = min(n_permutations, math.factorial(grid**2))
        if n_permutations_per_image > most:
            raise ValueError(
                f"n_permutations_per_image={n_permutations_per_image} different permutations are needed and there are {most}; "
                f"pass a number from 1 to {most}."
            )
        self.grid, self.n_permutations, self.n_permutations_per_image = grid, n_permutations, n_permutations_per_image
        self.tile, self.channel_jitter, self.greyscale, self.whole = tile, channel_jitter, greyscale, whole
        self.given.backbone, self.given.predictor = backbone, predictor

    def _build(self) -> None:
        self.loss = self.given.loss or nn.CrossEntropyLoss()
        self.register_buffer("permutations", permutation_set(self.grid**2, self.n_permutations))  # (K, T)
        tile, _ = self._tile_sizes(self.network_shape)
        side, parts = (self.grid * tile, 1) if self.whole else (tile, self.grid**2)
        backbone, predictor = build_backbone(self.given.backbone, self.network_shape), self.given.predictor
        width = parts * tile_width(backbone, self.network_shape, side, "a smaller grid, larger images")
        if predictor is None:
            predictor = MLP(width, len(self.permutations), hidden=512)
        self.model = CombinedNet(backbone, predictor)

    def _build_views(self) -> None:
        super()._build_views()
        self.tile_size, self.jitter = self._tile_sizes(self.view_shape)  # pixels
        self.cut = GridTiles(self.grid, self.tile_size + 2 * self.jitter)
        self.to_grey = RandomGrayscale(self.greyscale)

    def _forward(self, data: Batch) -> Tensor:
        (images,) = self.raw_views(data)  # (B, C, H, W)
        tiles = self._tiles(images)  # (B, T, C, t, t)
        targets, orders = self._orders(len(tiles))  # (B, P), (B, P, T)
        sample = torch.arange(len(tiles), device=tiles.device).view(-1, 1, 1)
        if self.whole:
            logits = self.model(assemble(tiles[sample, orders].flatten(0, 1)))
        else:
            features = self.model.features(tiles.flatten(0, 1)).unflatten(0, tiles.shape[:2])  # (B, T, D)
            logits = self.model.predictor(features[sample, orders].flatten(2).flatten(0, 1))  # (B * P, K)
        self.note("accuracy", (logits.argmax(1) == targets.flatten()).float())
        return self.loss(logits.float(), targets.flatten())

    def _tiles(self, images: Tensor) -> Tensor:
        """Tiles as the network gets them, in the order of the image. Shape: (B, C, H, W) -> (B, T, C, t, t)."""
        tiles = self.cut(images, self.generator)
        shifted = shift_channels(tiles.flatten(0, 1), self.jitter, self.generator)
        seen = self.preprocessing(self.to_grey(shifted, self.generator))
        std, mean = torch.std_mean(seen, (1, 2, 3), keepdim=True, correction=0)  # over all channels, so hues are kept
        return ((seen - mean) / std.clamp(min=1e-5)).unflatten(0, tiles.shape[:2])

    def _orders(self, count: int) -> tuple[Tensor, Tensor]:
        """P different permutations for every image: their class (B, P), and the order of the tiles in each (B, P, T)."""
        scores = torch.rand(count, len(self.permutations), generator=self.generator)
        targets = scores.topk(self.n_permutations_per_image).indices.to(self.permutations.device, non_blocking=True)
        return targets, self.permutations[targets]

    def _tile_sizes(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        """Side of a tile and largest shift of its channels, in pixels, for images of ``shape``."""
        channels, height, width = shape
        cell = min(height, width) // self.grid
        tile = int(cell * self.tile + 1e-6)
        if tile < 2:
            least = self.grid * math.ceil(2 / self.tile)
            raise ValueError(
                f"images of {height} x {width} are too small for {self.grid} x {self.grid} tiles; pass a smaller grid, or images "
                f"of at least {least} x {least} pixels."
            )
        return tile, min(round(self.channel_jitter * tile), (cell - tile) // 2) if channels > 1 else 0

    @property
    def chance_loss(self) -> float:
        """ln K: every permutation equally likely."""
        return math.log(len(self.permutations))

    def show_inputs(self, path: str | Path, dataset: Any = None, count: int = 8) -> Path:
        """Writes a PNG with a row for each image: the image, then its puzzles, as separate tiles unless ``whole`` is set.

        Args:
            path: of the file; missing folders are made.
            dataset: anything that ``open_images`` takes; None takes the images that are trained on.
            count: rows.
        """

        def columns(images: Tensor) -> list[Tensor]:
            (views,) = self.raw_views(Batch(images))
            tiles, (_, orders) = self._tiles(views), self._orders(len(views))
            shown = (0.5 + tiles / 5).clamp(0, 1)  # from -2.5 to 2.5 standard deviations
            shown = shown if self.whole else pad(shown, (1, 1, 1, 1), value=1.0)
            sample = torch.arange(len(views), device=views.device).view(-1, 1)
            return [to_float(views)] + [assemble(shown[sample, order]) for order in orders.unbind(1)]

        titles = ["image", *(f"puzzle {number + 1}" for number in range(self.n_permutations_per_image))]
        return show_columns(self, columns, path, dataset, count, titles=titles, title="Jigsaw: what the network gets")


def assemble(tiles: Tensor) -> Tensor:
    """The image that the tiles of a square grid make, row by row. Shape: (B, T, C, t, t) -> (B, C, g * t, g * t)."""
    grid = math.isqrt(tiles.shape[1])
    return tiles.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def shift_channels(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Shifts every channel of every image by up to ``pixels`` on its own and cuts off the border.

    Shape:
        (B, C, H, W) -> (B, C, H - 2 * pixels, W - 2 * pixels).
    """
    if pixels == 0:
        return images
    height, width = (side - 2 * pixels for side in images.shape[2:])
    windows = images.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2 * pixels + 1, 2 * pixels + 1, h, w)
    top, left = torch.randint(2 * pixels + 1, (2, *images.shape[:2]), generator=generator).to(images.device)  # (B, C)
    sample, channel = (torch.arange(n, device=images.device) for n in images.shape[:2])
    return windows[sample[:, None], channel, top, left]
