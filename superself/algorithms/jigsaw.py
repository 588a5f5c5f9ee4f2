"""Jigsaw: in which order do the tiles of the image come?"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from superself.augment import GridTiles, RandomGrayscale
from superself.augment.permutations import permutation_set
from superself.data import to_float
from superself.evaluation.figures import show_columns
from superself.networks import MLP, CombinedNet, build_backbone, tile_width
from superself.supervisor import Supervisor


class JigsawNetSupervisor(Supervisor):
    """Cuts each image into tiles, puts them in an order of a set of permutations, and classifies the permutation.

    L = mean over images and their puzzles of the cross-entropy of the predicted permutation; chance is ln K for K
    permutations, 0 is perfect. A tile is smaller than its cell and at a random place in it, so that edges need not meet; each
    is standardised by itself, so that brightness does not tell which were neighbours; channels of colour are moved against
    each other and some tiles are grey, so that a lens's colour fringes do not tell where a tile was.

    The backbone sees one tile at a time and the head all features in the permuted order (the paper's context-free network):
    nothing can be read off where two tiles meet, and the puzzles of an image share their features, so that four cost a fifth
    more than one. ``whole`` gives the backbone the puzzle as one image: one puzzle then costs about a quarter less, four
    nearly twice as much, and only a backbone whose features keep their places can solve it.

    With Adam, lr 1e-3 and batches of 32, resnet18 on CIFAR-10 brought the loss of unseen images from 3.18 to 1.41 in 12,640
    images; its features were then better than random ones for a linear classifier and worse for kNN (bench/RESULTS.md).

    Source: Noroozi & Favaro, Jigsaw, arXiv:1603.09246.
    Deviations: 2 x 2 tiles and all 24 permutations, for small images (the paper: ``grid=3, n_permutations=1000``); several
        puzzles share the tiles of an image; whole images are cut, not crops; tiles, not images, are made grey. The set of
        permutations keeps the smallest distance large too; see ``permutation_set``.
    Args:
        dataset: see Supervisor, as are the options that are not listed here.
        grid: tiles along each axis, 2 or 3.
        n_permutations: K, as far apart as can be; all there are if they are fewer.
        n_permutations_per_image: puzzles of each image in a step, all different.
        tile: side of a tile as a fraction of its cell's.
        channel_jitter: how far each channel of a tile is moved at the most, as a fraction of its side.
        greyscale: share of the tiles that are made grey.
        whole: one image of the whole puzzle for the backbone, in place of one tile at a time.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module; sees tiles and, later, images.
        predictor: from the features of the tiles, one after another (B, T * D), to logits (B, K), or from those of the
            whole (B, D); None for an MLP.
        loss: of (logits (B, K), targets (B,)); None for the cross-entropy.
    Shape:
        data: images (B, C, H, W) and their places (B,) -> loss ().
    Raises:
        ValueError: if the hyper-parameters make no puzzle, or images are too small for the grid.
    """

    family = "patch"
    loss_meaning = "cross-entropy of the permutation; 0 is perfect"
    likely_causes = (
        "the images look alike everywhere (textures, microscopy), so that no tile has a place of its own",
        "the task is too hard for so short a run (pass grid=2 or fewer n_permutations)",
        "the learning rate is too high for this optimiser (try a tenth of it)",
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
        **options: Any,
    ) -> None:
        super().__init__(None, dataset, loss or nn.CrossEntropyLoss(), collate_fn, **options)
        if grid not in (2, 3):
            raise ValueError(f"grid={grid} makes no puzzle that can be solved by classification; pass 2 or 3.")
        if n_permutations < 2 or not 0 < tile <= 1:
            raise ValueError(
                f"n_permutations={n_permutations} and tile={tile} make no puzzle; pass 2 permutations or more, and the side "
                "of a tile as a fraction of its cell's, above 0 and at most 1."
            )
        self.register_buffer("permutations", permutation_set(grid * grid, n_permutations))  # (K, T)
        if not 1 <= n_permutations_per_image <= len(self.permutations):
            raise ValueError(
                f"n_permutations_per_image={n_permutations_per_image} cannot be different permutations of "
                f"{len(self.permutations)}; pass 1 to {len(self.permutations)}."
            )
        channels, height, width = self.images.shape
        cell = min(height, width) // grid
        self.tile = int(cell * tile + 1e-6)
        if self.tile < 2:
            raise ValueError(
                f"images of {height} x {width} are too small for {grid} x {grid} tiles; pass a smaller grid or larger images."
            )
        self.grid, self.puzzles, self.whole = grid, n_permutations_per_image, whole
        self.jitter = min(round(channel_jitter * self.tile), (cell - self.tile) // 2) if channels > 1 else 0  # pixels
        self.cut, self.grey = GridTiles(grid, self.tile + 2 * self.jitter), RandomGrayscale(greyscale)
        side, parts = (grid * self.tile, 1) if whole else (self.tile, grid * grid)
        backbone = build_backbone(backbone, self.images.shape)
        width = parts * tile_width(backbone, self.images.shape, side, "a smaller grid, larger images")
        predictor = MLP(width, len(self.permutations), hidden=512) if predictor is None else predictor
        self.model = CombinedNet(backbone, predictor)

    @property
    def chance_loss(self) -> float:
        """ln K: every permutation equally likely."""
        return math.log(len(self.permutations))

    def _forward(self, data: tuple[Tensor, Tensor]) -> Tensor:
        tiles = self._tiles(data[0])  # (B, T, C, t, t)
        targets, orders = self._orders(len(tiles))  # (B, P), (B, P, T)
        sample = torch.arange(len(tiles), device=tiles.device).view(-1, 1, 1)
        if self.whole:
            logits = self.model(assemble(tiles[sample, orders].flatten(0, 1)))
        else:
            features = self.model.features(tiles.flatten(0, 1)).unflatten(0, tiles.shape[:2])  # (B, T, D)
            logits = self.model.predictor(features[sample, orders].flatten(2).flatten(0, 1))  # (B * P, K)
        return self.loss(logits.float(), targets.flatten())

    def _tiles(self, images: Tensor) -> Tensor:
        """Tiles as the network gets them, in the order of the image. Shape: (B, C, H, W) -> (B, T, C, t, t)."""
        tiles = self.cut(images, self.generator)
        one_by_one = move_channels(tiles.flatten(0, 1), self.jitter, self.generator)
        seen = self.preprocessing(self.grey(one_by_one, self.generator))
        std, mean = torch.std_mean(seen, (1, 2, 3), keepdim=True, correction=0)  # over all channels: hues stay
        return ((seen - mean) / std.clamp(min=1e-5)).unflatten(0, tiles.shape[:2])

    def _orders(self, images: int) -> tuple[Tensor, Tensor]:
        """Different permutations for every image: which they are (B, P), and their tiles (B, P, T)."""
        drawn = torch.rand(images, len(self.permutations), generator=self.generator).topk(self.puzzles).indices
        targets = drawn.to(self.permutations.device, non_blocking=True)
        return targets, self.permutations[targets]

    def show_inputs(self, path: str | Path, dataset: Any = None, count: int = 8) -> Path:
        """Writes a PNG with a row for each image: the image, then its puzzles, in tiles if the network gets it so.

        Args:
            path: where the picture goes; missing folders are made.
            dataset: anything that ``open_images`` takes; None takes the images that are trained on.
            count: rows.
        """

        def columns(images: Tensor) -> list[Tensor]:
            tiles, (_, orders) = self._tiles(images), self._orders(len(images))
            shown = (0.5 + tiles / 5).clamp(0, 1)  # two and a half standard deviations on either side
            shown = shown if self.whole else pad(shown, (1, 1, 1, 1), value=1.0)
            sample = torch.arange(len(images), device=images.device).view(-1, 1)
            return [to_float(images)] + [assemble(shown[sample, order]) for order in orders.unbind(1)]

        return show_columns(self, columns, path, dataset, count)


def assemble(tiles: Tensor) -> Tensor:
    """One image of the tiles of a square grid, row by row. Shape: (B, T, C, t, t) -> (B, C, g * t, g * t)."""
    grid = math.isqrt(tiles.shape[1])
    return tiles.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def move_channels(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Every channel of every image at a place of its own, up to ``pixels`` from the middle; the border is cut off.

    Shape:
        (B, C, H, W) -> (B, C, H - 2 * pixels, W - 2 * pixels).
    """
    if pixels == 0:
        return images
    height, width = (side - 2 * pixels for side in images.shape[2:])
    windows = images.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2 * pixels + 1, 2 * pixels + 1, h, w)
    places = torch.randint(2 * pixels + 1, (2, *images.shape[:2]), generator=generator).to(images.device)
    sample, channel = (torch.arange(n, device=images.device) for n in images.shape[:2])
    return windows[sample[:, None], channel, places[0], places[1]]
