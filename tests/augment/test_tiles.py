from __future__ import annotations

import pytest
import torch

from superself.augment import GridTiles, OverlappingPatches, Standardize


def places(size: int) -> torch.Tensor:
    """An image whose two channels are the row and the column of each pixel."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([rows, columns]).float()[None]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_tiles_lie_in_their_cells_at_every_place_with_a_gap():
    tiles = GridTiles(3, tile=20, gap=3)(places(77).expand(300, -1, -1, -1), seeded())
    assert tiles.shape == (300, 9, 2, 20, 20)
    corner = tiles[:, :, :, 0, 0].view(300, 3, 3, 2)
    assert torch.equal(tiles, tiles[:, :, :, :1, :1] + places(20)[None])  # whole, in order
    start = 1 + 25 * torch.arange(3) + 1  # 77 = 1 + 3 x 25 + 1, half of the gap on either side
    for axis, cells in ((0, start.view(3, 1)), (1, start.view(1, 3))):
        shift = corner[..., axis] - cells
        assert shift.unique().tolist() == [0, 1, 2]
    below = corner[:, 1:, :, 0] - (corner[:, :-1, :, 0] + 20)
    assert below.min() == 3 and below.max() == 7


def test_tiles_without_jitter_are_in_the_middle():
    tiles = GridTiles(2, tile=6, jitter=False)(places(20))
    assert tiles[0, :, :, 0, 0].tolist() == [[2, 2], [2, 12], [12, 2], [12, 12]]


def test_default_tile_is_jigsaws():
    assert GridTiles()(torch.rand(1, 3, 225, 225)).shape == (1, 9, 3, 64, 64)


def test_tiles_are_standardized_each_by_itself():
    images = torch.rand(3, 3, 30, 30, generator=seeded()) * torch.tensor([0.1, 0.5, 1.0]).view(3, 1, 1, 1)
    images[0, 0] = 0.3
    tiles = GridTiles(3, tile=8, standardize=True)(images, seeded())
    mean, std = tiles.mean((3, 4)), tiles.std((3, 4), correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)
    assert (std[0, :, 0] < 1e-3).all()
    torch.testing.assert_close(std[1:], torch.ones_like(std[1:]), atol=1e-4, rtol=0)
    torch.testing.assert_close(Standardize()(images)[1].std((1, 2), correction=0), torch.ones(3))


def test_tiles_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="tiles of 10 pixels with gap=1 do not fit into the 3 x 3 cells of 10 x 10"):
        GridTiles(3, tile=10, gap=1)(torch.rand(1, 3, 30, 30))


def test_overlapping_patches_are_cpcs():
    patches = OverlappingPatches(64)(places(256))
    assert patches.shape == (1, 49, 2, 64, 64)
    assert patches[0, 8, :, 0, 0].tolist() == [32, 32] and patches[0, -1, :, -1, -1].tolist() == [255, 255]
    with pytest.raises(ValueError, match="patches of 64 pixels do not fit into images of 32 x 32"):
        OverlappingPatches(64)(places(32))
