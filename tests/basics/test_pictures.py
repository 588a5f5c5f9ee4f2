from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sheets import cells

from superself.basics.drawing import MARGIN, text_width
from superself.basics.pictures import SPACE, display_range, to_picture, write_pictures


def test_range_is_zero_to_one_unless_the_images_exceed_it():
    assert display_range(torch.tensor([0.2, 0.4])) == (0.0, 1.0)
    assert display_range(torch.tensor([0.25, 0.5]), stretch=True) == (0.25, 0.5)
    assert display_range(torch.tensor([-2.0, 0.5])) == (-2.0, 0.5)
    assert display_range(torch.tensor([0.0, 4000.0])) == (0.0, 4000.0)
    assert display_range(torch.full((3,), 7.0)) == (7.0, 8.0)  # constant images are black


def test_all_columns_are_shown_in_the_range_of_the_first(tmp_path):
    images = torch.linspace(-1, 3, 16).view(1, 1, 4, 4)
    shown = np.array(Image.open(write_pictures([images, images / 2], tmp_path / "a" / "b.png")))
    assert shown.shape == (6, 12, 3)
    assert shown[1:5, 1:5, 0].ravel().tolist() == pytest.approx(((images + 1) / 4 * 255).flatten().tolist(), abs=0.51)
    assert shown[1:5, 7:11, 0].max() == round((1.5 + 1) / 4 * 255)


def test_given_range_decides_and_cuts_off(tmp_path):
    images = torch.tensor([-1.0, 0.0, 0.25, 1.0]).view(1, 1, 2, 2)
    shown = np.array(Image.open(write_pictures([images], tmp_path / "a.png", shown_range=(0.0, 0.5))))
    assert shown[1:3, 1:3, 0].ravel().tolist() == [0, 0, 128, 255]


def test_titles_labels_and_heading_are_drawn_around_the_images(tmp_path):
    black = torch.zeros(2, 3, 32, 32)
    path = write_pictures(
        [black, black], tmp_path / "a.png", titles=["one", "two"], rows=["above", "below"], title="All", subtitle="why"
    )
    sheet = np.array(Image.open(path))
    assert all((cell == 0).all() for row in cells(path, 2, 2, label="above") for cell in row)
    left, top = MARGIN + text_width("above") + 12, sheet.shape[0] - MARGIN - 2 * 128 - SPACE
    for column in range(2):
        x = left + column * (128 + SPACE)
        assert (sheet[top - 30 : top - 6, x : x + 128] < 100).any()  # the title of the column
        y = top + column * (128 + SPACE)
        assert (sheet[y : y + 128, MARGIN : left - 12] < 100).any()  # the label of the row
    assert (sheet[: MARGIN + 20, :100] < 100).any() and (sheet[: MARGIN // 2] == 255).all()


@pytest.mark.parametrize("side", [5, 40, 300])
def test_images_with_titles_are_enlarged_by_whole_numbers(side, tmp_path):
    images = torch.linspace(0, 1, side * side).view(1, 1, side, side)
    path = write_pictures([images, images, images], tmp_path / "a.png", titles=["a", "b", "c"])
    expected = {5: 125, 40: 120, 300: 128}[side]
    assert cells(path, 1, 3)[0][0].shape == (expected, expected, 3)


def test_each_column_and_row_needs_its_text(tmp_path):
    images = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match="titles has 1 texts, the picture has 2 titles; pass one text for each"):
        write_pictures([images, images], tmp_path / "a.png", titles=["one"])
    with pytest.raises(ValueError, match="rows has 3 texts, the picture has 2 rows"):
        write_pictures([images], tmp_path / "a.png", rows=["one", "two", "three"])


@pytest.mark.parametrize(("channels", "dtype"), [(1, "uint8"), (2, "uint8"), (3, "uint16"), (5, "float32")])
def test_any_channels_and_types_become_pictures(channels, dtype):
    images = torch.rand(channels, 8, 16, generator=torch.Generator().manual_seed(0)) * 200
    images = images.to(getattr(torch, dtype))
    shown = np.asarray(to_picture(images, 16, 8)).astype(float)
    first = images.double()[[0, 1, 2] if channels >= 3 else [0, 0, 0]].permute(1, 2, 0).numpy()
    if dtype != "uint8":
        first = (first - first.min()) / (first.max() - first.min()) * 255
    assert np.abs(shown - first).max() <= 1
