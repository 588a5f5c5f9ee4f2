from __future__ import annotations

import pytest
import torch
from scipy.ndimage import gaussian_filter, sobel
from torchvision.transforms.v2 import functional as tv

from superself.augment import GaussianBlur, RandomAdjustSharpness, Sobel
from superself.augment.filters import adjust_sharpness, blur_kernel_size, gaussian_blur
from superself.basics.colour import greyscale

from tensors import seeded


def images_of(count: int, height: int = 20, width: int = 17, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=seeded(count))


@pytest.mark.parametrize("kernel_size", [3, 9, 23])
def test_blur_equals_torchvisions_with_a_sigma_for_every_sample(kernel_size):
    images, sigmas = images_of(4), torch.tensor([0.1, 0.7, 1.5, 4.0])
    for image, sigma, view in zip(images, sigmas.tolist(), gaussian_blur(images, sigmas, kernel_size), strict=True):
        torch.testing.assert_close(view, tv.gaussian_blur(image, kernel_size, sigma), atol=1e-5, rtol=0)


def test_blur_equals_scipys_when_the_kernel_is_wide():
    image = images_of(1, 40, 40, 1)
    view = gaussian_blur(image, torch.tensor([2.0]), 33)
    reference = gaussian_filter(image[0, 0].double().numpy(), 2.0, mode="mirror", truncate=8)
    torch.testing.assert_close(view[0, 0].double(), torch.from_numpy(reference), atol=1e-5, rtol=0)


def test_blur_checks_its_kernel():
    with pytest.raises(ValueError, match="kernel_size=4 is even"):
        GaussianBlur(4)
    with pytest.raises(ValueError, match="kernel_size=41 is too large for images of 20 x 17"):
        GaussianBlur(41)(images_of(1))
    assert [blur_kernel_size(size) for size in (8, 32, 96, 224)] == [3, 3, 9, 23]


def test_sobel_equals_scipys():
    images = images_of(2)
    grey = greyscale(images)[:, 0].numpy()
    views = Sobel()(images)
    for k in range(2):
        for channel, axis in ((0, 1), (1, 0)):
            reference = torch.from_numpy(sobel(grey[k], axis, mode="nearest"))
            torch.testing.assert_close(views[k, channel], reference, atol=1e-5, rtol=0)


def test_sharpness_equals_torchvisions():
    images = images_of(5)
    factors = torch.tensor([0.0, 0.5, 1.0, 1.7, 3.0])
    for image, factor, view in zip(images, factors.tolist(), adjust_sharpness(images, factors), strict=True):
        torch.testing.assert_close(view, tv.adjust_sharpness(image, factor), atol=1e-5, rtol=0)
    torch.testing.assert_close(RandomAdjustSharpness(1.0, p=1.0)(images), images)
