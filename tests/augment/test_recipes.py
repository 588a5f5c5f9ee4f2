from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from superself.augment import (
    RECIPES,
    ColorJitter,
    Compose,
    GaussianBlur,
    Lambda,
    MultiCrop,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomSolarize,
    Views,
    recipe,
)
from superself.augment.recipes import moco_v1, pirl, simclr

from tensors import seeded


def steps(transform: Compose) -> dict:
    return {type(step): step for step in transform.transforms}


PAPERS = {  # scale; jitter: brightness, contrast, saturation, hue, p; grey; blur; solarize
    "simclr": [((0.08, 1), (0.8, 0.8, 0.8, 0.2, 0.8), 0.2, 0.5, 0)],
    "moco-v1": [((0.2, 1), (0.4, 0.4, 0.4, 0.4, 1.0), 0.2, 0, 0)],
    "moco-v2": [((0.2, 1), (0.4, 0.4, 0.4, 0.1, 0.8), 0.2, 0.5, 0)],
    "byol": [
        ((0.08, 1), (0.4, 0.4, 0.2, 0.1, 0.8), 0.2, 1.0, 0),
        ((0.08, 1), (0.4, 0.4, 0.2, 0.1, 0.8), 0.2, 0.1, 0.2),
    ],
    "swav": [((0.14, 1), (0.8, 0.8, 0.8, 0.2, 0.8), 0.2, 0.5, 0)] * 2
    + [((0.05, 0.14), (0.8, 0.8, 0.8, 0.2, 0.8), 0.2, 0.5, 0)] * 6,
    "dino": [((0.4, 1), (0.4, 0.4, 0.2, 0.1, 0.8), 0.2, 1.0, 0), ((0.4, 1), (0.4, 0.4, 0.2, 0.1, 0.8), 0.2, 0.1, 0.2)]
    + [((0.05, 0.4), (0.4, 0.4, 0.2, 0.1, 0.8), 0.2, 0.5, 0)] * 8,
}


@pytest.mark.parametrize("name", PAPERS)
def test_recipe_has_the_numbers_of_its_paper(name):
    transform = recipe(name, 224)
    views = transform.transforms if isinstance(transform, Views) else [transform]
    assert len(views) == len(PAPERS[name])
    for view, (scale, jitter, grey, blur, solarize) in zip(views, PAPERS[name], strict=True):
        parts = steps(view)
        assert parts[RandomResizedCrop].scale == scale and parts[RandomHorizontalFlip].p == 0.5
        assert parts[ColorJitter].factors == [(1 - amount, 1 + amount) for amount in jitter[:3]]
        assert parts[ColorJitter].hue == (-jitter[3], jitter[3]) and parts[ColorJitter].p == jitter[4]
        assert parts[RandomGrayscale].p == grey
        assert (parts[GaussianBlur].p if GaussianBlur in parts else 0) == blur
        assert not blur or parts[GaussianBlur].sigma == (0.1, 2.0)
        assert (parts[RandomSolarize].p if RandomSolarize in parts else 0) == solarize


def test_shares_of_samples_are_those_of_the_recipe():
    """Counted on the views: grey ones, and solarized ones of BYOL's second view."""
    images = torch.rand(1, 3, 16, 16, generator=seeded()).expand(3000, -1, -1, -1)
    for view in recipe("byol", 16, views=2)(images, seeded()):
        grey = (view.amax(1) - view.amin(1)).amax((1, 2)) < 1e-6
        assert abs(grey.float().mean() - 0.2) < 0.025
    bright = torch.full((3000, 3, 16, 16), 1.0)
    first, second = recipe("byol", 16)(bright, seeded())
    dark = [(view.amax((1, 2, 3)) < 0.5).float().mean() for view in (first, second)]
    assert dark[0] == 0 and abs(dark[1] - 0.2) < 0.025


def test_brightness_of_simclr_spreads_as_the_paper_says():
    """White images: only brightness changes them (contrast and saturation mix white with white), 1 at most."""
    views = simclr(32, strength=1.0)(torch.ones(4000, 3, 32, 32), seeded())[:, 0, 0, 0]
    darkened = views[views < 0.999]
    assert abs(len(darkened) / 4000 - 0.8 / 2) < 0.03  # p = 0.8, and half of the factors are below 1
    assert darkened.min() >= 0.199 and abs(darkened.mean() - 0.6) < 0.02


def test_small_images_are_not_blurred_unless_asked():
    for name in ("simclr", "moco-v2"):
        assert GaussianBlur not in steps(recipe(name, 32)) and GaussianBlur in steps(recipe(name, 33))
        assert GaussianBlur in steps(RECIPES[name](32, blur=True))
    assert steps(recipe("simclr", 96))[GaussianBlur].kernel_size == 9
    assert (
        steps(simclr(32))[ColorJitter].factors[0] == (0.6, 1.4) and steps(simclr(96))[ColorJitter].factors[0][1] == 1.8
    )


@pytest.mark.parametrize("size", [32, 96, (40, 64)])
@pytest.mark.parametrize("name", RECIPES)
def test_views_have_the_size_and_stay_in_range(name, size):
    stored = (48, 50) if name != "crop-flip" else (96, 96)  # which cuts without resizing
    images = (torch.rand(6, 3, *stored, generator=seeded()) * 255).byte()
    views = recipe(name, size)(images, seeded())
    height, width = size if isinstance(size, tuple) else (size, size)
    for i, view in enumerate(views if isinstance(views, list) else [views]):
        small = name in ("swav", "dino") and i >= 2
        expected = (round(height * 96 / 224), round(width * 96 / 224)) if small else (height, width)
        assert view.shape == (6, 3, *expected)
        assert view.min() >= -1e-5 and view.max() <= 1 + 1e-5


def test_plain_changes_nothing_but_the_size():
    images = torch.rand(3, 3, 20, 20, generator=seeded())
    assert torch.equal(recipe("plain", 20)(images, seeded()), images)


def test_unknown_names_are_refused_with_the_nearest_and_all_names():
    with pytest.raises(
        ValueError, match="augment='simclrr' is not a recipe; did you mean 'simclr'.*'crop-flip', 'resized"
    ):
        recipe("simclrr", 32)
    with pytest.raises(ValueError, match="'moco-v1' or 'moco-v2'|'moco-v2' or 'moco-v1'"):
        recipe("moco", 32)
    with pytest.raises(ValueError, match="is not a recipe; the recipes are 'simclr', 'moco-v1', .*'plain'"):
        recipe("xyzxyz", 32)
    with pytest.raises(ValueError, match="augment=3 is not an augmentation; pass a transform, .*'simclr', 'moco-v1'"):
        recipe(3, 32)
    with pytest.raises(ValueError, match="augment=<class .*RandomResizedCrop'> is not an augmentation"):
        recipe(RandomResizedCrop, 32)


def test_dictionaries_name_a_recipe_and_its_arguments():
    assert steps(recipe({"name": "simclr", "strength": 0.25}, 64))[ColorJitter].factors[0] == (0.8, 1.2)
    assert len(recipe({"name": "swav", "small_count": 2}, 64).transforms) == 4
    with pytest.raises(ValueError, match="recipe 'simclr' has no argument 'size'; it takes strength, blur"):
        recipe({"name": "simclr", "size": 9}, 32)
    with pytest.raises(ValueError, match="recipe 'plain' has no argument 'blur'; it takes no arguments"):
        recipe({"name": "plain", "blur": True}, 32)
    with pytest.raises(ValueError, match=r"augment=\{'strength': 1\} has no \"name\"; the recipes are 'simclr'"):
        recipe({"strength": 1}, 32)


def test_true_is_the_default_and_false_and_none_are_no_augmentation():
    images = torch.rand(2, 3, 24, 24, generator=seeded())
    assert ColorJitter in steps(recipe(True, 24, default="moco-v2"))
    assert steps(recipe(True, 24, default={"name": "simclr", "strength": 0.25}))[ColorJitter].hue == (-0.05, 0.05)
    crop = RandomResizedCrop(24)
    assert recipe(True, 24, default=crop) is crop
    for nothing in (False, None):
        assert torch.equal(recipe(nothing, 24, default="moco-v2")(images), images)
        assert torch.equal(recipe(True, 24, default=nothing)(images), images) if nothing is False else True
    with pytest.raises(ValueError, match="augment=True needs a default, and there is none here; pass one of 'simclr'"):
        recipe(True, 24)


@pytest.mark.parametrize("stored", [(40, 40), (41, 56), (32, 32), (24, 20), (24, 40)])
def test_no_augmentation_cuts_the_middle_without_resizing_if_the_image_is_large_enough(stored):
    images = torch.rand(2, 3, *stored, generator=seeded())
    view = recipe(False, 32)(images)
    if min(stored) >= 32:
        torch.testing.assert_close(view, tv.center_crop(images, [32, 32]), atol=1e-6, rtol=0)
    else:
        middle = tv.center_crop(images, [min(stored)] * 2)
        torch.testing.assert_close(view, tv.resize(middle, [32, 32], antialias=True), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", RECIPES)
def test_views_smaller_than_the_stored_images_are_cut_from_the_whole_image(name):
    """Each quarter of the stored image is seen by some view, except by "plain", which shows the middle."""
    images = torch.zeros(4, 3, 80, 80)
    for k, (rows, columns) in enumerate([(0, 0), (0, 64), (64, 0), (64, 64)]):
        images[k, :, rows : rows + 16, columns : columns + 16] = 1.0  # a corner each
    bright, generator = torch.zeros(4), seeded()
    for _ in range(30):
        views = recipe(name, 56)(images, generator)
        views = views if isinstance(views, list) else [views]
        bright += sum((view.amax((1, 2, 3)) - view.amin((1, 2, 3)) > 0.5).float() for view in views)
    assert (bright > 0).all() or name == "plain"
    assert name != "plain" or torch.equal(recipe(name, 56)(images), images[:, :, 12:68, 12:68])


def test_crop_flip_is_the_rotnet_loaders():
    transform = recipe("crop-flip", 32)
    crop, flip = transform.transforms
    assert (crop.size, crop.padding, crop.fill, flip.p) == ((32, 32), 4, 0.0, 0.5)
    ones = torch.ones(200, 1, 32, 32)
    views = transform(ones, seeded())
    assert set(views.unique().tolist()) == {0.0, 1.0} and views.sum((1, 2, 3)).min() < 29 * 29
    larger = transform(torch.ones(50, 1, 40, 48), seeded())
    assert larger.shape == (50, 1, 32, 32) and (larger == 1).all()  # no padding where there is room to crop


def test_resized_crop_flip_never_shows_what_is_outside():
    views = recipe("resized-crop-flip", 32)(torch.ones(200, 1, 32, 32), seeded())
    torch.testing.assert_close(views, torch.ones_like(views), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["swav", "dino"])
def test_size_of_the_image_decides_about_the_blur_of_small_views(name):
    for size in (33, 64, 75):
        large, *_, small = recipe(name, size).transforms
        assert GaussianBlur in steps(large) and GaussianBlur in steps(small)
        assert steps(small)[GaussianBlur].kernel_size == 3
    assert steps(recipe(name, 224).transforms[-1])[GaussianBlur].kernel_size == 9
    assert all(GaussianBlur not in steps(view) for view in recipe(name, 32).transforms)


def test_normalisation_and_channels_of_functions_are_kept():
    grey = Lambda(lambda batch: batch[:, :1], channels=1)
    assert recipe(grey, 8, normalize=((0.5,), (0.5,))).out_channels(3) == 1


def test_anything_callable_is_a_recipe():
    images = torch.rand(3, 3, 20, 20, generator=seeded())
    doubled = recipe(lambda batch: [batch, 1 - batch], 20, views=2)
    assert isinstance(doubled, Lambda) and torch.equal(
        doubled((images * 255).byte())[1], 1 - doubled((images * 255).byte())[0]
    )
    transform = moco_v1(20)
    assert recipe(transform, 99) is transform


def test_a_function_with_one_view_is_called_for_each():
    images, calls = torch.rand(3, 3, 8, 8, generator=seeded()), []

    def function(batch):
        calls.append(batch)
        return batch + len(calls)

    first, second = recipe(function, 8, views=2, normalize=((0.0,) * 3, (2.0,) * 3))(images)
    torch.testing.assert_close(first, (images + 1) / 2)
    torch.testing.assert_close(second, (images + 2) / 2)
    with pytest.raises(ValueError, match="returns 3 views, but 2 are needed"):
        recipe(lambda batch: [batch] * 3, 8, views=2)(images)


def test_number_of_views_is_met_or_refused():
    images = torch.rand(3, 3, 40, 40, generator=seeded())
    assert len(recipe("simclr", 40, views=2)(images)) == 2
    assert recipe("byol", 40, views=2)(images)[1].shape == (3, 3, 40, 40)
    with pytest.raises(ValueError, match="makes 8 views of an image, 2 are needed"):
        recipe("swav", 40, views=2)
    assert isinstance(recipe("dino", 40), MultiCrop)


def test_normalisation_is_the_last_step_of_every_view():
    images, (mean, std) = torch.rand(4, 3, 40, 40, generator=seeded()), ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    for name in ("simclr", "byol", "swav"):
        plain, ours = recipe(name, 40)(images, seeded()), recipe(name, 40, normalize=(mean, std))(images, seeded())
        for view, one in zip(
            plain if isinstance(plain, list) else [plain], ours if isinstance(ours, list) else [ours], strict=True
        ):
            expected = (view - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
            torch.testing.assert_close(one, expected, atol=1e-5, rtol=0)
    own = recipe(lambda batch: batch, 40, normalize=(mean, std))(images)
    torch.testing.assert_close(own, (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))


def test_intensity_of_pirl_is_changed_for_two_thirds():
    choice = pirl(64).transforms[3]
    assert choice.p == 0.66 and len(choice.transforms) == 4


def test_exemplar_moves_the_whole_image_within_its_bounds():
    image = torch.zeros(1, 3, 64, 64)
    image[:, :, 29:35, 29:35] = 1.0  # a spot in the middle
    views = recipe("exemplar", 64)(image.expand(300, -1, -1, -1), seeded()).mean(1)
    views = (views - views.amin((1, 2), keepdim=True)).clamp(min=0)
    mass, place = views.sum((1, 2)), torch.arange(64) + 0.5
    centres = torch.stack([(views.sum(axis) * place).sum(1) / mass for axis in (1, 2)], 1) - 32
    assert centres.abs().max() < 0.2 * 64 + 0.25 * 64  # the shift, and what bends add
    assert (centres.std(0) > 4).all() and (centres.mean(0).abs() < 2).all()
