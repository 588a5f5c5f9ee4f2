from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from superself.augment import PerImage
from superself.data.batch import Batch

ITEMS = [(torch.full((3, 10, 12), 10 * k, dtype=torch.uint8), k) for k in range(4)]


def test_tensors_are_transformed_one_by_one_and_stacked():
    batch = PerImage(v2.Compose([v2.RandomCrop(8), v2.ToDtype(torch.float32, scale=True)]))(ITEMS)
    assert isinstance(batch, Batch) and batch.views is None and batch.target is None and batch.mask is None
    assert batch.images.shape == (4, 3, 8, 8) and batch.index.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(batch.images[:, 0, 0, 0], torch.tensor([0, 10, 20, 30]) / 255)


def test_pictures_and_arrays_are_given_when_asked_for():
    flipped = PerImage(lambda image: image.transpose(Image.Transpose.ROTATE_90), takes="pil")(ITEMS).images
    assert flipped.shape == (4, 3, 12, 10) and flipped.dtype == torch.uint8
    grey = PerImage(lambda image: image, takes="pil")([(item[:1], k) for item, k in ITEMS]).images
    assert torch.equal(grey, torch.stack([item[:1] for item, _ in ITEMS]))
    halves = PerImage(lambda image: {"image": image[:5]}, takes="array")(ITEMS).images
    assert halves.shape == (4, 3, 5, 12)


@pytest.mark.parametrize("pair", [list, tuple])
def test_several_views_are_stacked_separately_and_the_images_stay(pair):
    batch = PerImage(lambda image: pair([image + 1, image[:, :5]]))(ITEMS)
    assert [tuple(view.shape) for view in batch.views] == [(4, 3, 10, 12), (4, 3, 5, 12)]
    assert torch.equal(batch.views[0], torch.stack([item for item, _ in ITEMS]) + 1)
    assert torch.equal(batch.images, torch.stack([item for item, _ in ITEMS]))


def test_targets_and_masks_are_passed_on():
    masks = [torch.full((10, 12), k) for k in range(4)]
    batch = PerImage(lambda image: [image, image])([(image, k + 7, 2 * k, masks[k]) for image, k in ITEMS])
    assert batch.index.tolist() == [7, 8, 9, 10] and batch.target.tolist() == [0, 2, 4, 6]
    assert torch.equal(batch.mask, torch.stack(masks))
    vectors = PerImage(lambda image: image)([(image, k, torch.tensor([k, 0.5]), None) for image, k in ITEMS])
    assert vectors.target.shape == (4, 2) and vectors.mask is None
    assert PerImage(lambda image: image)([(image, k, None, None) for image, k in ITEMS]).target is None
    with pytest.raises(
        ValueError, match=r"does not move masks, but its transform turns images of size \(10, 12\) into"
    ):
        PerImage(lambda image: image[:, :5])([(image, k, None, masks[k]) for image, k in ITEMS])


@pytest.mark.parametrize("count", [1, 2])
def test_it_runs_in_the_workers_of_a_loader(count):
    crop = v2.RandomCrop(8)
    views = PerImage(crop if count == 1 else lambda image: [crop(image), crop(image)])
    for batch in DataLoader(ITEMS, batch_size=2, num_workers=1, collate_fn=views):
        made = [batch.images] if count == 1 else batch.views
        assert [view.shape for view in made] == [(2, 3, 8, 8)] * count


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match='takes=\'numpy\' is unknown; pass "tensor", "pil" or "array"'):
        PerImage(lambda image: image, takes="numpy")
