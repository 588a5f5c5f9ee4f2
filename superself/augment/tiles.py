"""Images cut into tiles of a grid (Jigsaw, PIRL) or overlapping patches (CPC)."""

from __future__ import annotations

import torch
from torch import Tensor

from superself.augment.transform import Transform


class GridTiles(Transform):
    """One tile from each cell of a grid, smaller than the cell and at a random place in it.

    Gaps between tiles and random places prevent a network from solving a puzzle by matching edges. To augment each tile
    separately: ``augment(tiles.flatten(0, 1), generator).unflatten(0, tiles.shape[:2])``.

    Args:
        grid: cells along each axis.
        tile: side of a tile in pixels; None takes 64/75 of a cell, as Jigsaw does.
        gap: smallest distance between neighbouring tiles, in pixels.
        jitter: put each tile at a random place in its cell; False puts it in the middle.
        standardize: give each tile mean 0 and standard deviation 1 in each channel.

    Source: Noroozi & Favaro, Jigsaw, arXiv:1603.09246 (225 pixels, cells of 75, tiles of 64).
    Shape:
        images (B, C, H, W) -> (B, grid * grid, C, tile, tile), row by row.
    Raises:
        ValueError: if a tile and its gap do not fit into a cell.
    """

    def __init__(
        self, grid: int = 3, tile: int | None = None, gap: int = 0, jitter: bool = True, standardize: bool = False
    ) -> None:
        super().__init__(2 * grid * grid)
        self.grid, self.tile, self.gap, self.jitter, self.standardize = grid, tile, gap, jitter, standardize

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        tiles = self.cut(images, numbers)
        return standardize(tiles) if self.standardize else tiles

    def move_masks(self, masks: Tensor, numbers: Tensor) -> Tensor:
        return self.cut(masks, numbers)

    def cut(self, images: Tensor, numbers: Tensor) -> Tensor:
        """The tiles (B, T, C, tile, tile) of images or masks."""
        b, _, height, width = images.shape
        cell = torch.tensor([height // self.grid, width // self.grid])
        tile = self.tile or int(cell.min()) * 64 // 75
        room = cell - tile - self.gap  # largest shift of a tile within its cell
        if tile < 1 or room.min() < 0:
            raise ValueError(
                f"tiles of {tile} pixels with gap={self.gap} do not fit into the {self.grid} x {self.grid} cells of "
                f"{cell[0]} x {cell[1]} pixels of images of {height} x {width}; pass a smaller tile or larger images."
            )
        margin = (torch.tensor([height, width]) - self.grid * cell) // 2  # on each side of the grid
        cells = torch.cartesian_prod(*[torch.arange(self.grid)] * 2) * cell + margin + self.gap // 2  # (T, 2)
        shift = (numbers.view(b, -1, 2) * (room + 1)).floor().long() if self.jitter else room // 2
        corner = (cells + shift).expand(b, -1, -1).to(images.device, non_blocking=True)  # (B, T, 2)
        step = torch.arange(tile, device=images.device)
        rows, columns = corner[..., :1] + step, corner[..., 1:] + step  # (B, T, tile)
        sample = torch.arange(b, device=images.device).view(b, 1, 1, 1)
        tiles = images.permute(0, 2, 3, 1)[sample, rows[..., :, None], columns[..., None, :]]  # (B, T, tile, tile, C)
        return tiles.permute(0, 1, 4, 2, 3).contiguous()


class OverlappingPatches(Transform):
    """All patches of ``size`` pixels, ``stride`` pixels apart.

    Args:
        size: side of a patch in pixels.
        stride: pixels from one patch to the next; None takes half a patch.

    Source: van den Oord et al., CPC, arXiv:1807.03748 (256 pixels: 7 x 7 patches of 64 that overlap by half).
    Shape:
        images (B, C, H, W) -> (B, rows * columns, C, size, size), row by row.
    Raises:
        ValueError: if the image is smaller than a patch.
    """

    def __init__(self, size: int = 64, stride: int | None = None) -> None:
        super().__init__()
        self.size, self.stride = size, stride or size // 2

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        if min(images.shape[2:]) < self.size:
            raise ValueError(
                f"patches of {self.size} pixels do not fit into images of {images.shape[2]} x {images.shape[3]}; "
                "pass a smaller size."
            )
        patches = images.unfold(2, self.size, self.stride).unfold(3, self.size, self.stride)  # (B, C, r, c, s, s)
        return patches.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)

    def move_masks(self, masks: Tensor, numbers: Tensor) -> Tensor:
        return self.transform(masks, numbers)


class Standardize(Transform):
    """Every image with mean 0 and standard deviation 1 in each channel."""

    def transform(self, images: Tensor, numbers: Tensor) -> Tensor:
        return standardize(images)


def standardize(images: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the last two dimensions; constant images become 0."""
    std, mean = torch.std_mean(images, (-2, -1), keepdim=True, correction=0)
    return (images - mean) / std.clamp(min=1e-5)
