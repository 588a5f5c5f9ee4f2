from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sheets import cells
from torch.utils.data import TensorDataset

from superself.augment import RECIPES, show_views


def images_of(count: int, channels: int = 3, size: int = 20) -> torch.Tensor:
    return (torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0)) * 255).byte()


def test_picture_shows_the_originals_first_and_one_row_for_each_image(tmp_path):
    path = show_views(images_of(5), "simclr", tmp_path / "new" / "views.png", count=3, views=4)
    table = cells(path, rows=3, columns=5)
    assert np.array_equal(table[0][0][3::6, 3::6], images_of(5)[0].permute(1, 2, 0).numpy())  # a pixel is 6 x 6
    assert len({table[0][column].tobytes() for column in range(5)}) == 5


@pytest.mark.parametrize("augment", RECIPES)
def test_every_recipe_can_be_shown(augment, tmp_path):
    assert show_views(images_of(4, size=40), augment, tmp_path / "views.png", count=2, views=2).stat().st_size > 0


@pytest.mark.filterwarnings("ignore:.*needs RGB")
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channels_are_shown(channels, tmp_path):
    picture = Image.open(show_views(images_of(4, channels), "moco-v2", tmp_path / "views.png"))
    assert picture.mode == "RGB"


def test_data_sets_and_functions_are_taken(tmp_path):
    path = show_views(
        TensorDataset(images_of(9, size=300)), lambda batch: 1 - batch, tmp_path / "a.png", count=2, views=1
    )
    original, view = cells(path, rows=2, columns=2)[1]
    assert original.shape == (128, 128, 3) and np.abs(255.0 - original - view).max() <= 1


def test_equal_seeds_give_equal_pictures(tmp_path):
    one, other, third = (
        show_views(images_of(4), "simclr", tmp_path / f"{k}.png", seed=seed).read_bytes()
        for k, seed in enumerate([1, 1, 2])
    )
    assert one == other != third


@pytest.mark.parametrize("kind", ["uint16", "float"])
def test_images_of_other_ranges_are_stretched_and_their_views_alike(kind, tmp_path):
    ramp = torch.linspace(0, 4000, 400).view(1, 1, 20, 20).round()
    images = ramp.int().to(torch.uint16) if kind == "uint16" else ramp / 1000 - 1  # 0 to 4000, and -1 to 3
    path = show_views(images, lambda batch: batch, tmp_path / "a.png", count=1, views=2)
    original, view, _ = cells(path, rows=1, columns=3)[0]
    assert original.min() == 0 and original.max() == 255 and abs(original.mean() - 127.5) < 1
    assert np.array_equal(original, view)


def test_several_recipes_are_rows_of_each_image_and_the_original_stands_once(tmp_path):
    path = show_views(images_of(2), ["simclr", "plain"], tmp_path / "a.png", count=2, views=3)
    table = cells(path, rows=4, columns=4, label="simclr")
    for row in (0, 2):
        assert (table[row + 1][0] == 255).all()  # no second original
        assert all(np.array_equal(table[row][0], view) for view in table[row + 1][1:])  # "plain" changes nothing
        assert not np.array_equal(table[row][1], table[row][0])


def test_recipes_of_other_numbers_of_views_share_a_sheet(tmp_path):
    path = show_views(images_of(2), ["byol", lambda batch: batch], tmp_path / "a.png", count=2, views=1)
    table = cells(path, rows=4, columns=3, label="a function")
    assert (table[1][2] == 255).all() and not (table[0][2] == 255).all()


def test_no_recipe_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"augment=\[\] has no augmentations to show; pass at least one"):
        show_views(images_of(2), [], tmp_path / "a.png")
