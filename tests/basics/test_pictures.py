from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from superself.basics.pictures import display_range, write_pictures


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
