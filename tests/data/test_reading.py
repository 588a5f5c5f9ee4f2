"""Reading: norm, num_channels and single_channel of open_images, and how preprocessing treats raw images."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from superself.data import Preprocessing, Reading, open_images

from tensors import seeded


def stack(count=6, channels=4, high=10_000, size=8):
    """Raw 16-bit images (N, C, H, W) with values up to ``high``."""
    pixels = torch.randint(0, high + 1, (count, channels, size, size), generator=seeded(1))
    return pixels.to(torch.uint16)


@pytest.fixture(params=["array", "files", "items", "files, resized"])
def opened(request, tmp_path):
    """Opens raw images (N, C, H, W) in each way that images come in."""

    def open_as(images, **options):
        if request.param == "array":
            return open_images(images, **options)
        if request.param == "items":
            return open_images([image.numpy() for image in images.permute(0, 2, 3, 1)], **options)
        for number, image in enumerate(images):
            np.save(tmp_path / f"{number}.npy", image.permute(1, 2, 0).numpy())
        size = 8 if request.param == "files, resized" else None
        return open_images(tmp_path, image_size=size, **options)

    return open_as


def test_images_are_divided_and_lose_further_channels_wherever_they_come_from(opened):
    raw = stack()
    images = opened(raw, norm=10_000, num_channels=3)
    assert images.shape == (3, 8, 8) and images.dtype == torch.float32
    expected = raw[:, :3].float() / 10_000
    assert raw[0, 1, 2, 3].item() == 9356 and expected[0, 1, 2, 3].item() == pytest.approx(0.9356)
    for _ in range(2):  # from the source, and from memory
        torch.testing.assert_close(images.batch(range(6)).images, expected)
        torch.testing.assert_close(images[2], expected[2])
        images.load()
    assert "divided by 10000" in images.describe() and "3 channels, float32" in images.describe()


def test_one_channel_is_repeated(opened):
    raw = stack(channels=1)
    for options, count in (({}, 3), ({"num_channels": 2}, 2), ({"num_channels": 1}, 1)):
        images = opened(raw, single_channel=True, **options)
        assert images.shape == (count, 8, 8) and images.dtype == torch.uint16
        assert torch.equal(images.load().batch([0]).images[0].int(), raw[0].int().expand(count, -1, -1))


def test_files_of_three_and_four_channels_are_one_data_set(tmp_path):
    for number in range(6):
        channels = 3 + number % 2
        np.save(tmp_path / f"{number}.npy", np.full((8, 8, channels), number, np.uint8))
    images = open_images(tmp_path, num_channels=3)
    assert images.shape == (3, 8, 8) and len(images.broken) == 0
    assert images.batch(range(6)).images.amax((1, 2, 3)).tolist() == list(range(6))
    with pytest.raises(ValueError, match="cannot be read"):
        open_images(tmp_path)


def test_full_scale_changes_nothing_and_keeps_the_small_type():
    raw = torch.arange(4 * 64, dtype=torch.uint8).view(4, 1, 8, 8)
    images = open_images(raw, norm=255)
    assert images.dtype == torch.uint8 and torch.equal(images.load().batch([1]).images, raw[1:2])
    assert open_images(raw.float(), norm=255).batch([3]).images.max().item() == 1


def test_floats_that_norm_brings_into_range_give_no_warning():
    raw = torch.rand(4, 3, 8, 8, generator=seeded()) * 3000
    with pytest.warns(UserWarning, match="from .* to .*divide them by their largest possible value .norm="):
        Preprocessing.of(open_images(raw))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Preprocessing.of(open_images(raw, norm=3000))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"norm": 0}, ValueError, "norm=0 cannot divide images; pass a number larger than 0"),
        ({"norm": -1.5}, ValueError, "norm=-1.5 cannot divide images"),
        ({"norm": float("nan")}, ValueError, "norm=nan cannot divide images"),
        ({"norm": "255"}, TypeError, "norm='255' is not a number"),
        ({"num_channels": 0}, ValueError, "num_channels"),
        ({"num_channels": 4}, ValueError, "num_channels=4 is more than the 3 channels of the images; pass at most 3.$"),
        (
            {"single_channel": True},
            ValueError,
            "single_channel=True is for images of one channel, and these have 3; leave it",
        ),
        ({"single_channel": "yes"}, TypeError, "single_channel='yes' is neither True nor False"),
    ],
)
def test_impossible_steps_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        open_images(torch.zeros(4, 3, 8, 8), **options)


def test_more_channels_than_one_need_single_channel():
    with pytest.raises(
        ValueError, match="more than the 1 channel of the images; pass at most 1, or single_channel=True"
    ):
        open_images(torch.zeros(4, 1, 8, 8), num_channels=3)


def test_an_open_data_set_takes_no_steps():
    with pytest.raises(ValueError, match="this data set is open already"):
        open_images(open_images(torch.zeros(4, 1, 8, 8)), norm=255)


@pytest.mark.parametrize("to", [torch.uint16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("channels", "steps"), [(4, (10_000, 3, False)), (1, (10_000, None, True)), (2, (500.0, None, False))]
)
def test_raw_images_and_opened_ones_are_preprocessed_alike(to, channels, steps):
    raw = stack(channels=channels, high=int(steps[0])).to(to)
    if to == torch.float64:
        raw = raw.float()
    norm, num_channels, single_channel = steps
    images = open_images(raw, norm=norm, num_channels=num_channels, single_channel=single_channel)
    preprocessing = Preprocessing.of(images)
    read = preprocessing(images.batch(range(6)).images)
    torch.testing.assert_close(read.mean((0, 2, 3)), torch.zeros(len(read[0])), atol=1e-4, rtol=0)
    torch.testing.assert_close(preprocessing.for_raw_images()(raw), read)
    torch.testing.assert_close(preprocessing.for_images(open_images(raw))(raw), read)
    torch.testing.assert_close(preprocessing.for_images(images)(images.batch(range(6)).images), read)
    if to == torch.uint16:  # integers cannot have been divided yet
        torch.testing.assert_close(preprocessing(raw), read)


def test_images_read_with_another_norm_keep_theirs():
    preprocessing = Preprocessing.of(open_images(stack(channels=1), norm=10_000))
    other = open_images(torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8), norm=255)  # stays uint8
    assert preprocessing.for_images(other)(other.batch([3]).images).max().item() == pytest.approx(
        (1 - preprocessing.mean[0]) / preprocessing.std[0], rel=1e-5
    )


def test_steps_survive_the_checkpoint_and_old_ones_lack_them():
    steps = Reading(10_000, 3, False)
    new = Preprocessing((3, 8, 9), "float32", (0.1,) * 3, (1.0,) * 3, sobel=True, reading=steps, raw=True)
    stored = json.loads(json.dumps(new.to_dict()))
    assert Preprocessing.from_dict(stored) == new
    old = {key: stored[key] for key in ("shape", "dtype", "mean", "std")}
    assert Preprocessing.from_dict(old) == Preprocessing((3, 8, 9), "float32", (0.1,) * 3, (1.0,) * 3)


def test_masks_and_targets_stay():
    items = [{"image": image.numpy(), "label": 1, "mask": torch.ones(8, 8)} for image in stack(channels=4)]
    batch = open_images(items, norm=10_000, num_channels=3).batch([0, 1])
    assert batch.images.shape == (2, 3, 8, 8) and batch.target.tolist() == [1, 1] and batch.mask.shape == (2, 8, 8)


def test_transparent_png_has_three_channels_anyway(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 255)).save(tmp_path / "a.png")
    images = open_images(tmp_path, num_channels=3)
    assert images.shape == (3, 8, 8) and images.dtype == torch.uint8
