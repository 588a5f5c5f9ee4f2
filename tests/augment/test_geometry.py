from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from torchvision import transforms
from torchvision.transforms.v2 import functional as tv

from superself.augment import (
    CenterCrop,
    Compose,
    ElasticTransform,
    RandomAffine,
    RandomCrop,
    RandomResizedCrop,
    RandomRotation90,
    RandomZoom,
    Resize,
)
from superself.augment.geometry import affine_matrix, deform_image, dense_displacement
from superself.augment.warp import Warp, resample

from tensors import images_of, seeded

AFFINES = [
    (0.0, (0, 0), 1.0, (0.0, 0.0)),
    (33.0, (0, 0), 1.0, (0.0, 0.0)),
    (0.0, (3, -4), 1.0, (0.0, 0.0)),
    (-70.0, (2, 1), 1.3, (12.0, -8.0)),
    (10.0, (0, 5), 1.1, (0.0, 25.0)),
]


@pytest.mark.parametrize("fill", [0.0, 0.6])
def test_affine_equals_torchvisions(fill):
    images = images_of(len(AFFINES))
    angle, shift, zoom, shear = (torch.tensor(column, dtype=torch.float32) for column in zip(*AFFINES, strict=True))
    everyone = torch.ones(len(images), dtype=torch.bool)
    warp = Warp.identity(images).with_fill(fill, everyone).then(affine_matrix((30, 26), angle, shift, zoom, shear))
    for image, (a, t, z, s), view in zip(images, AFFINES, resample(images, warp), strict=True):
        # an image of ones shows how much of a pixel comes from inside (with a fill, torchvision darkens the edge twice)
        options = {"interpolation": tv.InterpolationMode.BILINEAR, "fill": None}
        inside = tv.affine(torch.ones_like(image), a, list(t), z, list(s), **options)
        reference = tv.affine(image, a, list(t), z, list(s), **options)
        torch.testing.assert_close(view, reference + (1 - inside) * fill, atol=5e-4, rtol=0)


def test_affine_parameters_lie_between_their_bounds():
    images = torch.zeros(4000, 1, 20, 40)
    affine = RandomAffine((-10, 30), (0.1, 0.2), (0.5, 2.0), p=1.0)
    warp = affine.warp(Warp.identity(images), torch.rand(4000, affine.draws, generator=seeded()))
    (a, b), (c, d) = warp.matrix[:, :, :2].permute(1, 2, 0)
    zoom = 1 / (a * d - b * c).sqrt()
    angle = torch.rad2deg(torch.atan2(b, a))
    assert zoom.min() >= 0.499 and zoom.max() <= 2.001 and abs(zoom.mean() - 1.25) < 0.03
    assert angle.min() >= -10.01 and angle.max() <= 30.01 and abs(angle.mean() - 10) < 0.7
    centre = torch.tensor([20.0, 10.0, 1.0])
    moved = (
        torch.linalg.solve(warp.matrix[:, :, :2], (centre[:2] - warp.matrix[:, :, 2])[..., None])[..., 0] - centre[:2]
    )
    assert moved[:, 0].abs().max() <= 4.01 and moved[:, 1].abs().max() <= 4.01


def test_affine_keeps_samples_that_are_not_selected():
    images = images_of(200, 8, 8)
    views = RandomAffine((90, 90), p=0.25)(images, seeded())
    same = (views - images).abs().amax((1, 2, 3)) < 1e-5
    assert abs(same.float().mean() - 0.75) < 0.1


def test_resized_crops_are_drawn_as_torchvision_draws_them():
    """Against the definition, on a long image where many boxes do not fit: area, proportions, place, fallback."""
    crop, height, width = RandomResizedCrop(8), 64, 128
    numbers = torch.rand(20000, crop.draws, generator=seeded())
    left, top, right, bottom = crop.boxes(numbers, height, width).unbind(1)
    reference = torch.tensor([simulated(row, height, width) for row in numbers[:500].tolist()])
    assert torch.equal(torch.stack([left, top, right, bottom], 1)[:500], reference)
    w, h = right - left, bottom - top
    assert (left >= 0).all() and (top >= 0).all() and (right <= width).all() and (bottom <= height).all()
    area, ratio = w * h / (height * width), w / h
    assert area.min() > 0.07 and ratio.min() > 0.7 and ratio.max() < 1.4
    centre = (left + right) / 2
    assert abs(centre.mean() - width / 2) < 1


def simulated(numbers: list[float], height: int, width: int) -> list[float]:
    """torchvision's loop, fed with our numbers."""
    areas, ratios, (x, y) = numbers[:10], numbers[10:20], numbers[20:]
    for area, ratio in zip(areas, ratios, strict=True):
        area = height * width * np.float32(0.08 + np.float32(0.92) * np.float32(area))
        ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * ratio)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(y * (height - h + 1)), int(x * (width - w + 1))
            return [left, top, left + w, top + h]
    w, h = round(height * 4 / 3), height
    return [(width - w) // 2, 0, (width - w) // 2 + w, h]


def test_resized_crop_has_the_distribution_of_torchvisions():
    crop = RandomResizedCrop(8, (0.2, 1.0))
    left, top, right, bottom = crop.boxes(torch.rand(5000, crop.draws, generator=seeded()), 200, 150).unbind(1)
    image = torch.zeros(3, 200, 150)
    drawn = [transforms.RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(1500)]
    for ours, theirs in zip((top, left, bottom - top, right - left), torch.tensor(drawn).float().T, strict=True):
        assert abs(ours.mean() - theirs.mean()) < 4 * theirs.std() / len(theirs) ** 0.5
        assert abs(ours.std() / theirs.std() - 1) < 0.1


def test_resized_crop_of_an_impossible_shape_takes_the_middle():
    crop = RandomResizedCrop(8, (0.9, 1.0), (1.0, 1.0))
    boxes = crop.boxes(torch.rand(3, crop.draws, generator=seeded()), 10, 100)
    assert boxes.tolist() == [[45.0, 0.0, 55.0, 10.0]] * 3


def test_rotations_by_90_degrees_are_exact_and_equally_likely():
    images = images_of(1, 7, 7).expand(2000, -1, -1, -1)
    views = RandomRotation90()(images, seeded())
    counts = []
    for turns in range(4):
        same = (views - torch.rot90(images, turns, (2, 3))).abs().amax((1, 2, 3)) < 1e-5
        counts.append(int(same.sum()))
    assert sum(counts) == 2000 and min(counts) > 430
    with pytest.raises(ValueError, match="need square images, got 7 x 9"):
        RandomRotation90()(torch.rand(1, 3, 7, 9))


def test_resize_and_centre_crop_equal_torchvisions():
    images = images_of(2, 40, 30)
    torch.testing.assert_close(Resize((20, 20))(images), tv.resize(images, [20, 20], antialias=True), atol=1e-5, rtol=0)
    reference = tv.resize(tv.center_crop(images, [30, 30]), [15, 15], antialias=True)
    torch.testing.assert_close(CenterCrop(15)(images), reference, atol=1e-5, rtol=0)


def test_crop_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"crop of \(40, 40\) does not fit into images of \(30, 26\) with padding=2"):
        RandomCrop(40, padding=2)(images_of(1))


def test_zooming_out_puts_the_image_in_the_middle_of_the_fill():
    images = torch.ones(3, 1, 16, 16)
    views = RandomZoom((0.5, 0.5), fill=0.25)(images)
    expected = torch.full((16, 16), 0.25)
    expected[4:12, 4:12] = 1
    torch.testing.assert_close(views[0, 0, 6:10, 6:10], expected[6:10, 6:10])
    torch.testing.assert_close(views[0, 0, :3], expected[:3])
    zoomed = RandomZoom((2.0, 2.0))(images_of(2, 16, 16))
    reference = tv.resize(tv.center_crop(images_of(2, 16, 16), [8, 8]), [16, 16])
    torch.testing.assert_close(zoomed[:, :, 2:-2, 2:-2], reference[:, :, 2:-2, 2:-2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("points", [2, 3, 5])
def test_elastic_deformation_equals_elasticdeform(points):
    pytest.importorskip("elasticdeform")
    images = images_of(2, 40, 32)
    grid = 3 * torch.randn(2, 2, points, points, generator=seeded())
    warp = Warp.identity(images).bend_by(dense_displacement(grid, (40, 32)), torch.ones(2, dtype=torch.bool))
    for image, one, view in zip(images, grid, resample(images, warp), strict=True):
        reference = torch.from_numpy(deform_image(image.numpy(), one.numpy(), fill=-9.0))
        inside = reference >= 0  # within half a pixel of the edge elasticdeform fills, where we interpolate
        assert inside.float().mean() > 0.6
        torch.testing.assert_close(view[inside], reference[inside], atol=2e-3, rtol=0)


def test_elastic_displacements_have_the_given_spread():
    elastic = ElasticTransform(points=4, sigma=0.1)
    images = torch.zeros(1000, 1, 40, 60)
    warp = elastic.warp(Warp.identity(images), torch.rand(1000, elastic.draws, generator=seeded()))
    corners = warp.bend[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert abs(corners.std() - 4) < 0.15 and abs(corners.mean()) < 0.15
    with pytest.raises(ValueError, match="points=1 cannot describe a bend"):
        ElasticTransform(points=1)


def test_missing_elasticdeform_is_reported_only_where_it_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "elasticdeform", None)  # importing it now raises
    assert ElasticTransform()(images_of(2)).shape == (2, 3, 30, 26)
    with pytest.raises(ImportError, match=r'pip install "superself\[elastic\]"'):
        ElasticTransform(backend="elasticdeform")


@pytest.mark.parametrize("fill", [None, 0.3])
def test_both_backends_of_elastic_transform_agree(fill):
    pytest.importorskip("elasticdeform")
    images = images_of(6, 40, 32)
    batched, exact = (ElasticTransform(fill=fill, p=0.5, backend=backend) for backend in ("torch", "elasticdeform"))
    views, reference = batched(images, seeded(2)), exact(images, seeded(2))
    same = (views == images).flatten(1).all(1)
    assert torch.equal(same, (reference == images).flatten(1).all(1)) and 0 < same.sum() < 6
    middle = (..., slice(8, -8), slice(8, -8))
    torch.testing.assert_close(views[middle], reference[middle], atol=1e-5, rtol=0)
    if fill is None:  # an edge is repeated from different places, at most half a pixel apart
        torch.testing.assert_close(views, reference, atol=1e-5, rtol=0)


def test_elasticdeform_is_not_composed_with_other_steps():
    pytest.importorskip("elasticdeform")
    images, parts = images_of(3, 24, 24), [RandomCrop(16), ElasticTransform(backend="elasticdeform"), RandomCrop(8)]
    numbers = torch.rand(3, Compose(parts).draws, generator=seeded())
    expected = images
    for part, part_numbers in zip(parts, numbers.split([part.draws for part in parts], 1), strict=True):
        expected = part.run(expected, part_numbers)
    torch.testing.assert_close(Compose(parts)(images, seeded()), expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match='backend=\'scipy\' is unknown; pass "torch" or "elasticdeform"'):
        ElasticTransform(backend="scipy")
