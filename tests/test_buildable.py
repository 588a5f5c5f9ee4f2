"""Views and masks, and what is declared."""

import pytest
import torch

from superself import Batch, BYOLSupervisor, RotateNetSupervisor
from superself.augment import Sobel

from cases import TinyBackbone, tiny_images


def bright(images):
    return (images > 127).long()


def test_masks_move_with_each_of_the_views():
    images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    images[:, :, 8:20, 4:16] = 255
    supervisor = BYOLSupervisor(images, augment="resized-crop-flip", backbone=TinyBackbone(), normalize=(0.0, 1 / 255))
    views, masks = supervisor.views_and_masks(Batch(images, mask=bright(images[:, 0])))
    assert len(views) == len(masks) == 2 and masks[0].shape == (8, 32, 32)
    assert not torch.equal(masks[0], masks[1])
    for view, mask in zip(views, masks, strict=True):
        assert (bright(view[:, 0]) == mask).float().mean() > 0.95  # apart from interpolated edges


def test_a_batch_without_masks_is_refused_where_masks_are_needed():
    supervisor = BYOLSupervisor(tiny_images(), backbone=TinyBackbone())
    with pytest.raises(ValueError, match="the batch has no masks"):
        supervisor.views_and_masks(Batch(tiny_images()))


def test_an_augmentation_that_changes_the_channels_is_refused_before_training():
    with pytest.raises(ValueError, match="augment turns 3 channels into"):
        RotateNetSupervisor(tiny_images(), augment=Sobel(), backbone=TinyBackbone())
