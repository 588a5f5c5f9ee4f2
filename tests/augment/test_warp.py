from __future__ import annotations

import math

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from superself.augment import (
    CenterCrop,
    Compose,
    ElasticTransform,
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomVerticalFlip,
    RandomZoom,
    Resize,
)
from superself.augment.warp import Warp, resample

from tensors import images_of, seeded

BOXES = torch.tensor([[0, 0, 26, 30], [3, 2, 10, 29], [20, 25, 26, 30], [5, 5, 6, 6], [1, 0, 26, 3]]).float()


@pytest.mark.parametrize("size", [(16, 16), (40, 9), (30, 26), (3, 5)])
def test_crops_equal_torchvisions_antialiased_ones(size):
    images = images_of(len(BOXES))
    ours = resample(images, Warp.identity(images).crop(BOXES, size))
    for image, (left, top, right, bottom), view in zip(images, BOXES.int().tolist(), ours, strict=True):
        reference = tv.resized_crop(image, top, left, bottom - top, right - left, list(size), antialias=True)
        torch.testing.assert_close(view, reference, atol=2e-5, rtol=0)


def test_flips_equal_torchvisions():
    images = images_of(4)
    torch.testing.assert_close(RandomHorizontalFlip(1.0)(images), tv.horizontal_flip(images), atol=1e-6, rtol=0)
    torch.testing.assert_close(RandomVerticalFlip(1.0)(images), tv.vertical_flip(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize("fill", [0.0, 0.7])
def test_padded_crops_equal_torchvisions(fill):
    images = images_of(6, 20, 20)
    views = RandomCrop(20, padding=4, fill=fill)(images, seeded())
    numbers = torch.rand(6, 2, generator=seeded())
    for image, (top, left), view in zip(images, (numbers * 9).int().tolist(), views, strict=True):
        reference = tv.crop(tv.pad(image, [4, 4, 4, 4], fill=fill), top, left, 20, 20)
        torch.testing.assert_close(view, reference, atol=1e-6, rtol=0)


def test_successive_crops_and_flips_resample_once_and_equal_one_after_another():
    images = images_of(1, 32, 32).round()  # a hard image: two resamplings would blur it twice
    steps = Compose([RandomHorizontalFlip(1.0), RandomCrop(16), RandomVerticalFlip(1.0), RandomCrop(8)])
    view = steps(images, seeded())
    assert set(view.unique().round(decimals=4).tolist()) <= {0.0, 1.0}
    one_by_one, generator = images, seeded()
    for step in steps.transforms:
        one_by_one = step(one_by_one, generator)
    torch.testing.assert_close(view, one_by_one, atol=1e-5, rtol=0)


def test_rotated_crop_is_sharper_than_two_resamplings():
    images = images_of(8, 32, 32)
    steps = [RandomAffine((45, 45), fill=None), RandomAffine((-45, -45), fill=None)]
    once = Compose(steps)(images)
    twice = steps[1](steps[0](images))
    middle = (..., slice(10, 22), slice(10, 22))
    torch.testing.assert_close(once[middle], images[middle], atol=1e-4, rtol=0)
    assert (twice - images)[middle].abs().mean() > 0.05


def test_general_path_agrees_with_the_upright_one():
    images = images_of(5, 30, 30)
    crop = Compose([RandomResizedCrop(40, (0.3, 1.0)), RandomHorizontalFlip()])
    turned = Compose(
        [*crop.transforms, RandomAffine((1e-4, 1e-4), fill=None)]
    )  # turned so little that only the method differs
    numbers = torch.rand(5, turned.draws, generator=seeded())
    upright = crop.run(images, numbers[:, : crop.draws])
    torch.testing.assert_close(turned.run(images, numbers), upright, atol=1e-4, rtol=0)


def zone_plate(side: int = 256) -> torch.Tensor:
    """Circles that get finer outwards, up to one pixel a wave at the edge of the image."""
    axis = torch.arange(side) - side / 2 + 0.5
    return (0.5 + 0.5 * torch.cos(math.pi / side * (axis[:, None] ** 2 + axis**2)))[None, None]


@pytest.mark.parametrize(
    ("name", "shrink"),
    [
        ("upright", Resize(64)),
        ("general", Compose([Resize(64), RandomAffine((30, 30), fill=None)])),
        ("bent", Compose([ElasticTransform(sigma=0.01), Resize(64)])),
        ("zoomed", Compose([RandomZoom((0.25, 0.25)), CenterCrop(256)])),
        ("affine", RandomAffine((10, 10), scale=(0.25, 0.25))),
    ],
)
def test_zone_plate_does_not_alias(name, shrink):
    """Where the rings are finer than the small image can show, it must be a flat grey, not false rings."""
    view = shrink(zone_plate(), seeded())
    side = view.shape[-1]
    scale = 64 / side  # of the picture within the view
    axis = (torch.arange(side) + 0.5 - side / 2) * scale * 4  # in pixels of the zone plate
    radius = (axis[:, None] ** 2 + axis**2).sqrt()
    fine = (radius > 85) & (radius < 120) if side == 64 else (radius * 4 > 85) & (radius * 4 < 120)
    spread = view[0, 0][fine].std()
    naive = zone_plate()[0, 0, 2::4, 2::4]
    axis = (torch.arange(64) + 0.5 - 32) * 4
    radius = (axis[:, None] ** 2 + axis**2).sqrt()
    assert naive[(radius > 85) & (radius < 120)].std() > 0.3  # without antialiasing: false rings of full contrast
    assert spread < 0.07, f"{name}: {spread:.3f}"


def test_identity_returns_the_images_untouched():
    images = images_of(3)
    view = Resize((30, 26))(images)
    assert torch.equal(view, images) and view.data_ptr() != images.data_ptr()


def test_two_bends_are_two_resamplings():
    images, bends = images_of(3, 40, 40), [ElasticTransform(), ElasticTransform(4)]
    both = Compose(bends)(images, seeded())
    numbers = torch.rand(3, 18 + 32, generator=seeded())
    one_by_one = bends[1].run(bends[0].run(images, numbers[:, :18]), numbers[:, 18:])
    torch.testing.assert_close(both, one_by_one)


def test_crop_at_the_corner_of_a_single_image_is_cut():
    """Its map from output to input is the identity, but its size is not that of the image."""
    image = images_of(1, 32, 32)
    crop = Warp.identity(image).crop(torch.tensor([[0.0, 0.0, 16.0, 16.0]]), (16, 16))
    torch.testing.assert_close(resample(image, crop), image[:, :, :16, :16], atol=1e-6, rtol=0)


@pytest.mark.parametrize("fill", [0.0, 0.5])
@pytest.mark.parametrize("turned", [False, True])
def test_crop_that_lies_in_the_padding_is_all_fill(fill, turned):
    image = images_of(1, 32, 32)
    everyone = torch.ones(1, dtype=torch.bool)
    warp = Warp.identity(image).with_fill(fill, everyone)
    for left, top in ((-16, -16), (16, 16), (-16, 16), (0, -16), (16, 0)):
        padded = warp.crop(torch.tensor([[left, top, left + 32, top + 32]]).float(), (32, 32))
        for place in ((0, 0, 16, 16), (0, 16, 16, 32), (16, 0, 32, 16), (16, 16, 32, 32)):
            twice = padded.crop(torch.tensor([place]).float(), (20, 20))
            if turned:
                twice = twice.then(torch.tensor([[[0.0, -1.0, 20.0], [1.0, 0.0, 0.0]]]))
            view = resample(image, twice)
            assert view.isfinite().all()
            outside = not (0 <= left + place[0] < 32 and 0 <= top + place[1] < 32)
            assert (view == fill).all() == outside, (left, top, place)


def test_random_resized_crops_of_padded_images_are_finite():
    images = images_of(64, 32, 32)
    views = Compose([RandomCrop(32, padding=16), RandomResizedCrop(32)])(images, seeded())
    assert views.isfinite().all() and views.min() >= -1e-5 and views.max() <= 1 + 1e-5


def test_crop_beyond_a_repeated_edge_shows_the_edge():
    image = images_of(1, 16, 16)
    small = RandomZoom((0.25, 0.25), fill=None).warp(Warp.identity(image), torch.zeros(1, 1))
    corner = resample(image, small.crop(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), (4, 4)))
    torch.testing.assert_close(corner, image[:, :, :1, :1].expand(-1, -1, 4, 4))


def test_enlarged_crops_of_padded_images_are_those_of_the_padded_image():
    """A crop must not mix in the padding where it lies next to pixels of the image."""
    images = images_of(8, 20, 20)
    steps = Compose([RandomCrop(24, padding=4, fill=0.6), RandomResizedCrop(30, (0.05, 0.6))])
    views, numbers = steps(images, seeded()), torch.rand(8, steps.draws, generator=seeded())
    top, left = (numbers[:, :2] * 5).int().T.tolist()
    boxes = steps.transforms[1].boxes(numbers[:, 2:], 24, 24).int().tolist()
    for k, (x0, y0, x1, y1) in enumerate(boxes):
        padded = tv.crop(tv.pad(images[k], [4] * 4, fill=0.6), top[k], left[k], 24, 24)
        reference = tv.resized_crop(padded, y0, x0, y1 - y0, x1 - x0, [30, 30], antialias=True)
        torch.testing.assert_close(views[k], reference, atol=2e-5, rtol=0)


SOMETIMES = {
    "flip": RandomHorizontalFlip(0.5),
    "vertical flip": RandomVerticalFlip(0.5),
    "zoom": RandomZoom((0.3, 0.9), fill=0.5, p=0.5),
    "affine": RandomAffine(20, (0.1, 0.1), (0.5, 1.5), 10, p=0.5),
    "affine without rotation": RandomAffine(0, (0.1, 0.1), (0.5, 1.5), fill=None, p=0.5),
    "elastic": ElasticTransform(p=0.5),
    "elastic with fill": ElasticTransform(fill=0.2, p=0.5),
}


@pytest.mark.parametrize("name", SOMETIMES)
def test_samples_that_are_not_selected_stay_exactly_as_they_are(name):
    images, part = images_of(40), SOMETIMES[name]
    numbers = torch.rand(40, part.draws, generator=seeded())
    views, selected = part.run(images.clone(), numbers), numbers[:, 0] < 0.5
    assert 0 < selected.sum() < 40
    assert torch.equal(views[~selected], images[~selected])
    assert ((views != images).flatten(1).any(1) == selected).all()


@pytest.mark.parametrize("composed", ["alone", "after a crop", "before a crop", "after a padded crop", "twice"])
@pytest.mark.parametrize("name", SOMETIMES)
def test_views_of_a_batch_are_those_of_its_halves(name, composed):
    images, part = images_of(12), SOMETIMES[name]
    around = {
        "alone": [part],
        "after a crop": [RandomResizedCrop(20), part],
        "before a crop": [part, RandomResizedCrop(20)],
        "after a padded crop": [RandomCrop(24, padding=4, fill=0.7), part],
        "twice": [part, part],
    }
    transform = Compose(around[composed])
    numbers = torch.rand(12, transform.draws, generator=seeded(1))
    whole = transform.run(images.clone(), numbers)
    for size in (6, 1):
        parts = [transform.run(i.clone(), n) for i, n in zip(images.split(size), numbers.split(size), strict=True)]
        assert torch.equal(torch.cat(parts), whole)


def test_steps_with_different_fills_are_separate_resamplings():
    """Both kinds of outside are seen in one view, so one map with one fill cannot show them."""
    images = images_of(4, 16, 16)
    steps = [RandomCrop(16, padding=8, fill=0.25), RandomAffine(translate=(0.5, 0.5), fill=0.75)]
    numbers = torch.rand(4, Compose(steps).draws, generator=seeded())
    both = Compose(steps).run(images, numbers)
    one_by_one = steps[1].run(steps[0].run(images, numbers[:, :2]), numbers[:, 2:])
    assert torch.equal(both, one_by_one)
    assert (both == 0.25).any() and (both == 0.75).any()
