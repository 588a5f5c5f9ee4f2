from __future__ import annotations

import pytest
import torch
from scipy.ndimage import gaussian_filter, sobel
from torchvision import transforms
from torchvision.transforms.v2 import functional as tv

from superself.augment import (
    GaussianBlur,
    GaussianNoise,
    Normalize,
    PixelMask,
    RandomBlocks,
    RandomErasing,
    Sobel,
)
from superself.augment.noise import gaussian_blur, kernel_for, pixel_noise
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
    with pytest.raises(ValueError, match="kernel_size=4 has no middle"):
        GaussianBlur(4)
    with pytest.raises(ValueError, match="kernel_size=41 reaches beyond images of 20 x 17"):
        GaussianBlur(41)(images_of(1))
    assert [kernel_for(size) for size in (8, 32, 96, 224)] == [3, 3, 9, 23]


def test_pixel_noise_is_uniform_and_independent():
    noise = pixel_noise(torch.rand(64, 2, generator=seeded()), (3, 32, 32), torch.device("cpu")).flatten(1)
    assert noise.min() >= 0 and noise.max() < 1
    expected = noise.numel() / 64
    chi_square = ((torch.histc(noise, 64, 0, 1) - expected) ** 2 / expected).sum()
    assert 30 < chi_square < 110  # 63 degrees of freedom
    neighbours = torch.corrcoef(torch.stack([noise[:, :-1].flatten(), noise[:, 1:].flatten()]))[0, 1]
    samples = torch.corrcoef(noise) - torch.eye(64)
    assert abs(neighbours) < 0.01 and samples.abs().max() < 0.08


def test_pixel_noise_depends_on_nothing_but_the_sample():
    numbers = torch.rand(5, 2, generator=seeded())
    whole = pixel_noise(numbers, (1, 8, 8), torch.device("cpu"))
    assert torch.equal(whole[3:4], pixel_noise(numbers[3:4], (1, 8, 8), torch.device("cpu")))


def test_gaussian_noise_has_its_standard_deviation():
    noise = GaussianNoise((0.05, 0.05))(torch.full((40, 3, 24, 24), 0.5), seeded()) - 0.5
    assert abs(noise.mean()) < 2e-3 and abs(noise.std() - 0.05) < 1e-3
    kurtosis = ((noise / noise.std()) ** 4).mean()
    assert abs(kurtosis - 3) < 0.1
    spread = (GaussianNoise((0.0, 0.1))(torch.full((500, 1, 24, 24), 0.5), seeded()) - 0.5).std((1, 2, 3))
    assert spread.min() < 0.005 and spread.max() > 0.093 and abs(spread.mean() - 0.05) < 0.005


def test_pixel_mask_takes_all_channels_of_a_share_of_pixels():
    views = PixelMask(0.3, value=0.5)(torch.ones(50, 3, 20, 20), seeded())
    masked = views == 0.5
    assert torch.equal(masked[:, 0], masked[:, 2]) and ((views == 1) | masked).all()
    assert abs(masked.float().mean() - 0.3) < 0.01
    share = PixelMask((0.1, 0.5))(torch.ones(500, 1, 20, 20), seeded()).mean((1, 2, 3))
    assert share.min() < 0.55 and share.max() > 0.85


def test_erased_boxes_have_torchvisions_distribution():
    erasing, image = RandomErasing(p=1.0), torch.ones(1, 40, 40)
    left, top, right, bottom = erasing.boxes(torch.rand(4000, 4, generator=seeded()), 40, 40).unbind(1)
    drawn = [transforms.RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3)) for _ in range(1500)]
    theirs = torch.tensor([box[:4] for box in drawn]).float()
    ours = torch.stack([top, left, bottom - top, right - left], 1)
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=0.9, rtol=0)
    torch.testing.assert_close(ours.std(0), theirs.std(0), atol=0.9, rtol=0)


def test_erasing_fills_the_drawn_box_and_nothing_else():
    erasing, numbers = RandomErasing(value=0.25, p=1.0), torch.rand(6, 4, generator=seeded())
    views = erasing.transform(torch.ones(6, 3, 20, 17), numbers)
    for view, box in zip(views, erasing.boxes(numbers, 20, 17).int().tolist(), strict=True):
        left, top, right, bottom = box
        expected = tv.erase(torch.ones(3, 20, 17), top, left, bottom - top, right - left, torch.tensor(0.25))
        assert torch.equal(view, expected)


def test_blocks_are_squares_of_the_given_size():
    views = RandomBlocks(1, 0.25)(torch.ones(30, 1, 20, 20), seeded())
    assert torch.equal((views == 0).sum((1, 2, 3)), torch.full((30,), 25))
    many = (RandomBlocks(5, 0.25)(torch.ones(30, 1, 20, 20), seeded()) == 0).sum((1, 2, 3))
    assert many.max() <= 125 and many.float().mean() > 80


def test_sobel_equals_scipys():
    images = images_of(2)
    grey = greyscale(images)[:, 0].numpy()
    views = Sobel()(images)
    for k in range(2):
        for channel, axis in ((0, 1), (1, 0)):
            reference = torch.from_numpy(sobel(grey[k], axis, mode="nearest"))
            torch.testing.assert_close(views[k, channel], reference, atol=1e-5, rtol=0)


def test_normalize_equals_torchvisions():
    images = images_of(3)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    torch.testing.assert_close(Normalize(mean, std)(images), tv.normalize(images, mean, std))
    with pytest.raises(ValueError, match="3 means for images of 1 channels"):
        Normalize(mean, std)(images[:, :1])
    with pytest.raises(ValueError, match=r"std=\(0.5, 0.0\)"):
        Normalize((0.0, 0.0), (0.5, 0.0))
