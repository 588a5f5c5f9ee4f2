from __future__ import annotations

import torch
from torchvision import transforms
from torchvision.transforms.v2 import functional as tv

from superself.augment import PixelMask, RandomBlocks, RandomErasing

from tensors import seeded


def test_pixel_mask_takes_all_channels_of_a_share_of_pixels():
    views = PixelMask(0.3, value=0.5)(torch.ones(50, 3, 20, 20), seeded())
    masked = views == 0.5
    assert torch.equal(masked[:, 0], masked[:, 2]) and ((views == 1) | masked).all()
    assert abs(masked.float().mean() - 0.3) < 0.01
    share = PixelMask((0.1, 0.5))(torch.ones(500, 1, 20, 20), seeded()).mean((1, 2, 3))
    assert share.min() < 0.55 and share.max() > 0.85


def test_erased_boxes_have_torchvisions_distribution():
    erasing, image = RandomErasing(p=1.0), torch.ones(1, 40, 40)
    left, top, right, bottom = erasing.boxes(torch.rand(4000, 4, generator=seeded()), 40, 40).unbind(1)
    drawn = [transforms.RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3)) for _ in range(1500)]
    theirs = torch.tensor([box[:4] for box in drawn]).float()
    ours = torch.stack([top, left, bottom - top, right - left], 1)
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=0.9, rtol=0)
    torch.testing.assert_close(ours.std(0), theirs.std(0), atol=0.9, rtol=0)


def test_erasing_fills_the_drawn_box_and_nothing_else():
    erasing, numbers = RandomErasing(value=0.25, p=1.0), torch.rand(6, 4, generator=seeded())
    views = erasing.transform(torch.ones(6, 3, 20, 17), numbers)
    for view, box in zip(views, erasing.boxes(numbers, 20, 17).int().tolist(), strict=True):
        left, top, right, bottom = box
        expected = tv.erase(torch.ones(3, 20, 17), top, left, bottom - top, right - left, torch.tensor(0.25))
        assert torch.equal(view, expected)


def test_blocks_are_squares_of_the_given_size():
    views = RandomBlocks(1, 0.25)(torch.ones(30, 1, 20, 20), seeded())
    assert torch.equal((views == 0).sum((1, 2, 3)), torch.full((30,), 25))
    many = (RandomBlocks(5, 0.25)(torch.ones(30, 1, 20, 20), seeded()) == 0).sum((1, 2, 3))
    assert many.max() <= 125 and many.float().mean() > 80
