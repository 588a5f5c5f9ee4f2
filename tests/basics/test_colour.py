from __future__ import annotations

import torch
from skimage.color import rgb2lab

from superself.basics.colour import greyscale, rgb_to_lab

from tensors import images_of


def test_lab_equals_scikit_images():
    images = images_of(4)
    reference = torch.from_numpy(rgb2lab(images.double().permute(0, 2, 3, 1).numpy())).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(rgb_to_lab(images), reference, atol=2e-4, rtol=0)


def test_lab_of_white_black_and_red_worked_by_hand():
    colours = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]).view(3, 3, 1, 1)
    expected = torch.tensor([[100.0, 0.0, 0.0], [0.0, 0.0, 0.0], [53.24, 80.09, 67.20]])
    torch.testing.assert_close(rgb_to_lab(colours).flatten(1), expected, atol=0.02, rtol=0)


def test_lab_is_float32_under_autocast():
    images = images_of(2)
    with torch.autocast("cpu", torch.bfloat16):
        lab = rgb_to_lab(images)
    assert lab.dtype == torch.float32 and torch.equal(lab, rgb_to_lab(images))


def test_greyscale_is_the_luma_of_rgb_and_the_mean_of_other_channels():
    assert greyscale(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)).item() == torch.tensor(0.2989).item()
    assert greyscale(torch.tensor([1.0, 0.5]).view(1, 2, 1, 1)).item() == 0.75
