"""Segment maps go through the same warp as their images."""

from __future__ import annotations

import pytest
import torch

from superself.augment import (
    RECIPES,
    CenterCrop,
    ColorJitter,
    Compose,
    ElasticTransform,
    GeometricTransform,
    GridTiles,
    Lambda,
    OverlappingPatches,
    PixelMask,
    RandomAffine,
    RandomApply,
    RandomChoice,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomInvert,
    RandomResizedCrop,
    RandomRotation90,
    RandomVerticalFlip,
    RandomZoom,
    Resize,
    Transform,
    Views,
    recipe,
)
from superself.augment.warp import Warp, resample_masks

from tensors import seeded


def blobs(count: int, size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of 0 and 1 with smooth outlines, and the same as segment maps (count, size, size)."""
    rough = torch.rand(count, 1, 5, 5, generator=seeded(count))
    masks = torch.nn.functional.interpolate(rough, (size, size), mode="bicubic")[:, 0] > 0.5
    return masks[:, None].float().expand(-1, 3, -1, -1).contiguous(), masks


GEOMETRIC = {
    "resize": Resize((40, 56)),
    "centre": CenterCrop((32, 40)),
    "crop": RandomCrop(32),
    "padded crop": RandomCrop(48, padding=12),
    "resized crop": RandomResizedCrop(40, (0.3, 1.0)),
    "flips": Compose([RandomHorizontalFlip(), RandomVerticalFlip()]),
    "rotation": RandomRotation90(),
    "zoom": RandomZoom((0.5, 1.5), p=0.7),
    "affine": RandomAffine(40, (0.2, 0.2), (0.8, 1.3), 10, p=0.7),
    "elastic": ElasticTransform(fill=0.0, p=0.7),
    "all": Compose(
        [RandomResizedCrop(44, (0.5, 1.0)), RandomHorizontalFlip(), RandomAffine(20), ElasticTransform(fill=0.0)]
    ),
    "with colours between": Compose(
        [RandomAffine(30), ColorJitter(0.1), RandomCrop(40), RandomChoice([RandomInvert(0.0), ColorJitter(0.1)])]
    ),
    "choice": RandomChoice([RandomHorizontalFlip(1.0), RandomAffine(45), RandomZoom()], count=2, p=0.8),
    "apply": RandomApply([RandomVerticalFlip(), RandomAffine(45)], 0.5),
}


@pytest.mark.parametrize("name", GEOMETRIC)
def test_mask_of_thresholded_image_stays_the_thresholded_view(name):
    images, masks = blobs(24)
    views, moved = GEOMETRIC[name](images, seeded(), masks=masks)
    assert moved.shape == (24, *views.shape[2:]) and moved.dtype == torch.bool
    certain = (views[:, 0] < 0.05) | (views[:, 0] > 0.7)  # away from outlines
    assert certain.float().mean() > 0.8
    wrong = (moved != (views[:, 0] > 0.5)) & certain
    assert wrong.float().mean() < 2e-3  # two resamplings in a row may disagree by a pixel
    assert len(GEOMETRIC[name](images, seeded())) == 24  # without masks, the views alone


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_labels_are_never_mixed(name, dtype):
    labels = torch.tensor([0, 7, 50, 200], dtype=dtype)
    masks = labels[torch.randint(4, (9, 2, 48, 48), generator=seeded())]
    before = masks.clone()
    _, moved = GEOMETRIC[name](blobs(9)[0], seeded(), masks=masks)
    assert moved.dtype == dtype and moved.ndim == 4
    assert set(moved.unique().tolist()) <= set(labels.tolist())
    assert torch.equal(masks, before)


@pytest.mark.parametrize("name", GEOMETRIC)
def test_views_do_not_depend_on_whether_masks_are_passed(name):
    images, masks = blobs(8)
    views, _ = GEOMETRIC[name](images, seeded(), masks=masks)
    assert torch.equal(views, GEOMETRIC[name](images, seeded()))


def test_mask_shows_the_nearest_pixel_worked_by_hand():
    mask = torch.arange(16).view(1, 1, 4, 4)
    warp = Warp.identity(mask)
    half = warp.crop(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), (2, 2))
    assert resample_masks(mask, half).tolist() == [[[[5, 7], [13, 15]]]]
    shifted = warp.then(torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]]))
    assert resample_masks(mask, shifted)[0, 0].tolist() == [[1, 2, 3, 0], [5, 6, 7, 0], [9, 10, 11, 0], [13, 14, 15, 0]]


@pytest.mark.parametrize("fill", [None, 0.5])
def test_masks_are_zero_outside_the_image(fill):
    images, masks = torch.ones(20, 1, 32, 32), torch.full((20, 32, 32), 9)
    _, moved = RandomZoom((0.5, 0.5), fill=fill)(images, masks=masks)
    assert (moved[:, 8:24, 8:24] == 9).all() and (moved == 9).sum() == 20 * 16 * 16
    _, moved = Compose([RandomCrop(32, padding=16), RandomResizedCrop(32)])(images, seeded(), masks=masks)
    assert set(moved.unique().tolist()) == {0, 9}


def test_steps_that_move_nothing_leave_masks_alone():
    images, masks = blobs(5)
    steps = Compose([ColorJitter(0.4), RandomErasing(p=1.0), PixelMask(0.5)])
    views, moved = steps(images, seeded(), masks=masks)
    assert torch.equal(moved, masks) and not torch.equal(views, images)


def test_views_come_with_a_list_of_masks():
    images, masks = blobs(6)
    views, moved = Views([RandomResizedCrop(40), RandomCrop(32)])(images, seeded(), masks=masks)
    assert [tuple(mask.shape) for mask in moved] == [(6, 40, 40), (6, 32, 32)]
    for view, mask in zip(views, moved, strict=True):
        assert (mask == (view[:, 0] > 0.5)).float().mean() > 0.95
    for name in RECIPES:
        views, moved = recipe(name, 40, normalize=((0.5,) * 3, (0.5,) * 3))(images, seeded(), masks=masks)
        views, moved = (value if isinstance(value, list) else [value] for value in (views, moved))
        assert [mask.shape[1:] for mask in moved] == [view.shape[2:] for view in views]


def test_tiles_and_patches_cut_masks_too():
    images, masks = blobs(4)
    for cut in (GridTiles(2, tile=16), OverlappingPatches(16), GridTiles(3, tile=12, standardize=True)):
        tiles, moved = cut(images, seeded(), masks=masks)
        assert moved.shape == (*tiles.shape[:2], *tiles.shape[3:]) and moved.dtype == torch.bool
        if not getattr(cut, "standardize", False):
            assert torch.equal(moved, tiles[:, :, 0] > 0.5)


def test_masks_of_functions_and_of_unknown_moves_are_refused():
    class Halves(Transform):
        def transform(self, images, numbers):
            return images[:, :, ::2, ::2]

    images, masks = blobs(2)
    with pytest.raises(ValueError, match="masks were passed, but a function says nothing about how it moves pixels"):
        Compose([RandomCrop(32), Lambda(lambda x: x)])(images, masks=masks)
    with pytest.raises(
        ValueError, match="size \\(24, 24\\) but their masks \\(48, 48\\): a step changes the size without"
    ):
        Halves()(images, masks=masks)
    with pytest.raises(ValueError, match="labels, which must be integer or bool, got torch.float32"):
        RandomCrop(32)(images, masks=masks.float())
    with pytest.raises(ValueError, match=r"masks of shape \(2, 9, 48\) do not fit images of shape \(2, 3, 48, 48\)"):
        RandomCrop(32)(images, masks=masks[:, :9])


def test_a_custom_geometric_transform_needs_only_its_warp():
    class ShiftLeft(GeometricTransform):
        def warp(self, warp, numbers):
            return warp.then(torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]).expand(len(numbers), 2, 3))

    images, masks = blobs(2)
    views, moved = ShiftLeft()(images, masks=masks)
    assert torch.equal(moved[:, :, :-2], masks[:, :, 2:]) and not moved[:, :, -2:].any()
    torch.testing.assert_close(views[..., :-2], images[..., 2:])
