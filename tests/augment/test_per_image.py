from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from superself.augment import PerImage

ITEMS = [(torch.full((3, 10, 12), 10 * k, dtype=torch.uint8), k) for k in range(4)]


def test_tensors_are_transformed_one_by_one_and_stacked():
    images, index = PerImage(v2.Compose([v2.RandomCrop(8), v2.ToDtype(torch.float32, scale=True)]))(ITEMS)
    assert images.shape == (4, 3, 8, 8) and index.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(images[:, 0, 0, 0], torch.tensor([0, 10, 20, 30]) / 255)


def test_pictures_and_arrays_are_given_when_asked_for():
    flipped, _ = PerImage(lambda image: image.transpose(Image.Transpose.ROTATE_90), takes="pil")(ITEMS)
    assert flipped.shape == (4, 3, 12, 10) and flipped.dtype == torch.uint8
    grey, _ = PerImage(lambda image: image, takes="pil")([(item[:1], k) for item, k in ITEMS])
    assert torch.equal(grey, torch.stack([item[:1] for item, _ in ITEMS]))
    halves, _ = PerImage(lambda image: {"image": image[:5]}, takes="array")(ITEMS)
    assert halves.shape == (4, 3, 5, 12)


def test_views_are_stacked_each_by_itself():
    views, _ = PerImage(lambda image: [image, image[:, :5]])(ITEMS)
    assert [tuple(view.shape) for view in views] == [(4, 3, 10, 12), (4, 3, 5, 12)]


def test_it_runs_in_the_workers_of_a_loader():
    loader = DataLoader(ITEMS, batch_size=2, num_workers=1, collate_fn=PerImage(v2.RandomCrop(8)))
    assert [images.shape for images, _ in loader] == [(2, 3, 8, 8)] * 2


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match='takes=\'numpy\' is unknown; pass "tensor", "pil" or "array"'):
        PerImage(lambda image: image, takes="numpy")
