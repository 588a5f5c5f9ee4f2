from __future__ import annotations

import warnings

import pytest
import torch
from skimage.color import rgb2lab
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from superself.augment import ColorJitter, RandomGrayscale, RGBToLab
from superself.augment.colour import adjust_hue, blend_with_grey, warn_skipped
from superself.basics.colour import greyscale, rgb_to_lab

from tensors import seeded


def images_of(count: int, channels: int = 3) -> torch.Tensor:
    images = torch.rand(count, channels, 9, 7, generator=seeded(count))
    images[:, :, 0] = images[:, :1, 0]  # greys
    images[:, :, 1] = images[:, :, 1].round()  # corners of the colour cube, ties of channels among them
    return images


FACTORS = torch.tensor([0.0, 0.3, 1.0, 1.4, 2.0])


def test_brightness_contrast_and_saturation_equal_torchvisions():
    images, none = images_of(5), torch.zeros(5)
    ours = [
        blend_with_grey(images.clone(), FACTORS, none, none),
        blend_with_grey(images.clone(), FACTORS, 1 - FACTORS, none),
        blend_with_grey(images.clone(), FACTORS, none, 1 - FACTORS),
    ]
    for views, reference in zip(ours, (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation), strict=True):
        for image, factor, view in zip(images, FACTORS.tolist(), views, strict=True):
            torch.testing.assert_close(view, reference(image, factor), atol=1e-5, rtol=0)


def test_hue_equals_torchvisions():
    turns = torch.linspace(-0.5, 0.5, 21)
    images = images_of(21)
    for image, turn, view in zip(images, turns.tolist(), adjust_hue(images, turns), strict=True):
        torch.testing.assert_close(view, tv.adjust_hue(image, turn), atol=1e-5, rtol=0)


def test_hue_turned_by_a_third_exchanges_the_channels():
    image = torch.tensor([0.9, 0.2, 0.4]).view(1, 3, 1, 1)
    torch.testing.assert_close(adjust_hue(image, torch.tensor([1 / 3])).flatten(), torch.tensor([0.4, 0.9, 0.2]))


def test_greyscale_equals_torchvisions():
    images = images_of(4)
    torch.testing.assert_close(greyscale(images), tv.rgb_to_grayscale(images))
    torch.testing.assert_close(RandomGrayscale(1.0)(images), tv.rgb_to_grayscale(images, 3))


def test_jitter_applies_the_four_in_the_drawn_order():
    """Against torchvision's functions in every one of the 24 orders."""
    images, jitter = images_of(24), ColorJitter(0.8, 0.8, 0.8, 0.2)
    numbers = torch.rand(24, 5, generator=seeded())
    numbers[:, 4] = (torch.arange(24) + 0.5) / 24
    views = jitter.transform(images.clone(), numbers)
    functions = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    seen = set()
    for k, image in enumerate(images):
        amounts = [*(0.2 + 1.6 * numbers[k, :3]), -0.2 + 0.4 * numbers[k, 3]]
        order = jitter.blends[k].tolist()
        order.insert(int(jitter.hue_step[k]), 3)
        seen.add(tuple(order))
        for which in order:
            image = functions[which](image, float(amounts[which]))
        torch.testing.assert_close(views[k], image, atol=2e-5, rtol=0)
    assert len(seen) == 24


def test_jitter_keeps_samples_that_are_not_selected():
    images = images_of(1).expand(400, -1, -1, -1)
    views = ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8)(images, seeded())
    same = (views == images).all(3).all(2).all(1)
    assert abs(same.float().mean() - 0.2) < 0.06


def test_jitter_has_the_distribution_of_torchvisions():
    """Mean and spread of all pixels of one image, over many draws."""
    image = images_of(1)
    views = ColorJitter(0.4, 0.4, 0.4, 0.1)(image.expand(3000, -1, -1, -1), seeded())
    reference = v2.ColorJitter(0.4, 0.4, 0.4, 0.1)
    theirs = torch.stack([reference(image[0]) for _ in range(1500)])
    torch.testing.assert_close(views.mean(0), theirs.mean(0), atol=0.03, rtol=0)
    torch.testing.assert_close(views.std(0), theirs.std(0), atol=0.025, rtol=0)


def test_bounds_are_as_in_torchvision():
    assert ColorJitter(1.5, (0.1, 1.9), 0, 0.1).factors == [(0.0, 2.5), (0.1, 1.9), (1, 1)]
    assert ColorJitter(hue=0.1).hue == (-0.1, 0.1)
    with pytest.raises(ValueError, match="hue=0.7 must lie between -0.5 and 0.5"):
        ColorJitter(hue=0.7)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_keep_brightness_and_contrast_with_one_warning(channels):
    warn_skipped.cache_clear()
    images, jitter = images_of(3, channels), ColorJitter(0.5, 0.5, 0.5, 0.2)
    with pytest.warns(UserWarning, match=rf"jitter of saturation and hue needs RGB .* {channels} channel"):
        views = jitter(images, seeded())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jitter(images, seeded())
        without = ColorJitter(0.5, 0.5)(images, seeded())
    torch.testing.assert_close(views, without)
    with pytest.warns(UserWarning, match="greyscale needs RGB"):
        assert torch.equal(RandomGrayscale(1.0)(images), images)
    with pytest.warns(UserWarning, match="Lab needs RGB"):
        assert torch.equal(RGBToLab()(images), images)


def test_contrast_of_one_channel_equals_torchvisions():
    image = images_of(1, 1)
    view = ColorJitter(contrast=(0.4, 0.4))(image)
    torch.testing.assert_close(view, tv.adjust_contrast(image, 0.4))


def test_lab_equals_scikit_images():
    images = images_of(3)
    reference = torch.from_numpy(rgb2lab(images.permute(0, 2, 3, 1).numpy())).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(rgb_to_lab(images), reference, atol=2e-3, rtol=0)
    scaled = RGBToLab()(images)
    assert scaled.min() >= 0 and scaled.max() <= 1
    torch.testing.assert_close(scaled[:, 0], reference[:, 0] / 100, atol=1e-4, rtol=0)
