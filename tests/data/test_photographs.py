"""The embedded photographs: labelled, balanced, repeatable, and no pixel in both splits."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from superself.data import open_images, photos
from superself.data.photographs import FLAT, cut_patches, split_boxes


@pytest.mark.parametrize(("height", "width"), [(303, 384), (427, 640), (1411, 1411), (101, 67)])
def test_no_pixel_is_in_both_splits(height, width):
    owners = np.zeros((2, height, width), int)
    for owner, split in zip(owners, ("train", "test"), strict=True):
        for top, left, bottom, right in split_boxes(height, width, split):
            owner[top:bottom, left:right] += 1
    assert (owners.sum(0) == 1).all()
    assert 0.2 < owners[1].mean() < 0.3


def test_patches_show_nothing_of_the_other_split():
    photo = np.zeros((320, 400, 3), np.uint8)
    random = np.random.default_rng(0)
    for channel, split in enumerate(("train", "test")):
        for top, left, bottom, right in split_boxes(320, 400, split):
            photo[top:bottom, left:right, channel] = random.integers(1, 256, (bottom - top, right - left))
    assert cut_patches(photo, "train", 100, 16, seed=0)[..., 1].max() == 0
    assert cut_patches(photo, "test", 100, 16, seed=0)[..., 0].max() == 0


def test_splits_are_balanced_large_enough_and_quick():
    start = time.perf_counter()
    train, test = photos("train"), photos("test")
    assert time.perf_counter() - start < 20  # about two seconds, on a machine with nothing else to do
    assert train.shape == (3, 64, 64) and train.in_memory and train.dtype == torch.uint8
    assert 3000 <= len(train) <= 4000 and 800 <= len(test) <= 1300
    assert len(train.classes) >= 12 and train.classes == test.classes
    for images in (train, test):
        counts = torch.bincount(images.labels, minlength=len(images.classes))
        assert counts.max() - counts.min() <= 1
        assert images.batch(range(len(images))).images.float().mean(1).flatten(1).std(1).min() > FLAT / 2


def test_count_and_size_are_kept_and_equal_arguments_give_equal_patches():
    first, again = photos("test", size=32, count=50), photos("test", size=32, count=50)
    assert torch.equal(first.sample(50), again.sample(50)) and len(first) == 50
    assert first.shape == (3, 32, 32)


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split='all' is unknown"):
        photos("all")


def test_opens_by_name_in_the_size_that_is_asked_for():
    images = open_images("photos:test", image_size=(16, 24))
    assert images.shape == (3, 16, 24) and images.labels is not None
