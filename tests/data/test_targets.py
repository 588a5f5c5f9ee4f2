"""Targets and masks of every kind are kept, and are the same from memory, from items and from workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from superself.data import BatchLoader, SequentialBatches, open_images

N = 6
PIXELS = torch.arange(N * 3 * 8 * 8).remainder(251).byte().view(N, 3, 8, 8)
MULTI_HOT = torch.tensor([[0.0, 1.0, float("nan")]]).repeat(N, 1)


class Items(Dataset):
    """Items made by a function of their place."""

    def __init__(self, item, n=N):
        self.item, self.n = item, n

    def __len__(self):
        return self.n

    def __getitem__(self, place):
        return self.item(place)


def opened_ways(item):
    """The same items read one by one, and from memory."""
    return open_images(Items(item)), open_images(Items(item)).load()


@pytest.mark.parametrize(
    "target",
    [
        torch.tensor([0.5, -1.0]),
        MULTI_HOT[0],
        np.array([1.5, 2.5], np.float32),
        torch.arange(16.0).view(1, 4, 4),
        [0, 1, 1],
        0.25,
        True,
    ],
    ids=["vector", "multi-hot", "array", "image", "list", "number", "bool"],
)
def test_targets_that_can_be_stacked_are_tensors(target):
    expected = torch.stack([torch.as_tensor(target)] * 2)
    for images in opened_ways(lambda place: (PIXELS[place], target)):
        found = images.batch([4, 1]).target
        torch.testing.assert_close(found, expected, equal_nan=True, check_dtype=False)
        assert images.labels is None
    assert torch.is_tensor(images.targets) and len(images.targets) == N


def test_each_image_comes_with_its_own_target():
    for images in opened_ways(lambda place: (PIXELS[place], torch.full((2,), float(place)))):
        for num_workers in (0, 1):
            for batch in BatchLoader(images, SequentialBatches(N, 4), num_workers):
                assert torch.equal(batch.target, batch.index[:, None].float().expand(-1, 2))


def test_targets_that_cannot_be_stacked_are_lists():
    for images in opened_ways(lambda place: (PIXELS[place], torch.zeros(place))):
        assert [len(target) for target in images.batch([4, 1]).target] == [4, 1]
    for images in opened_ways(lambda place: (PIXELS[place], f"name {place}")):
        assert images.batch([4, 1]).target == ["name 4", "name 1"]
        assert images[2][1] == "name 2"


def test_images_as_targets_become_tensors():
    picture = Image.fromarray(PIXELS[0].permute(1, 2, 0).numpy())
    palette = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    for images in opened_ways(lambda place: (PIXELS[place], picture)):
        assert torch.equal(images.batch([1]).target[0], PIXELS[0])
    for images in opened_ways(lambda place: (PIXELS[place], palette)):
        assert images.batch([1]).target.shape == (1, 8, 8)


def test_some_images_without_a_target_leave_a_list():
    for images in opened_ways(lambda place: (PIXELS[place], place if place % 2 else None)):
        assert images.batch([0, 1]).target == [None, 1]
        assert images.labels is None and images[0].shape == (3, 8, 8)


def test_class_targets_are_int64_labels():
    for dtype in (torch.uint8, torch.int32, torch.int64):
        data = TensorDataset(PIXELS, torch.arange(N).to(dtype))
        images = open_images(data)
        assert images.labels is None and images.batch([3]).target.dtype == torch.int64
        assert images.load().labels.tolist() == list(range(N)) and images.labels.dtype == torch.int64
        assert images[3][1] == 3


def test_masks_of_dicts_come_with_the_batch():
    for key in ("mask", "masks"):

        def item(place, key=key):
            return {"image": PIXELS[place], "label": place, key: PIXELS[place][:1] > 100}

        for images in opened_ways(item):
            batch = images.batch([5, 0])
            assert torch.equal(batch.mask, PIXELS[[5, 0], :1] > 100) and batch.target.tolist() == [5, 0]
            assert torch.equal(images.items([5])[0][0].mask, PIXELS[5, :1] > 100)


def test_masks_are_resized_and_cropped_with_their_images():
    marked = torch.zeros(N, 1, 8, 16, dtype=torch.uint8)
    marked[:, :, 2:6, 4:8] = 200
    for mask in (marked[0], marked[0, 0], marked[0, 0] > 0, Image.fromarray(marked[0, 0].numpy())):
        source = Items(lambda place, mask=mask: {"image": marked[place], "mask": mask})
        for images in (open_images(source, image_size=4), open_images(source, image_size=4).load()):
            batch = images.batch([3])
            inside = batch.mask.reshape(1, 4, 4) > 0
            assert inside.tolist() == (batch.images[:, 0] > 100).tolist() and inside.sum() == 4
            assert set(batch.mask.unique().tolist()) <= {0, 1, 200}
