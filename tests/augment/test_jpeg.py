from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from superself.augment import JPEG
from superself.augment.jpeg import compress, compressed, cosines

from tensors import seeded


def by_pillow(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=quality)
    return np.array(Image.open(file))


def as_batch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.reshape(*image.shape[:2], -1).copy()).permute(2, 0, 1)[None]


IMAGES = {
    "photograph": data.astronaut()[:120, 100:211],  # sides that are no multiples of 16
    "coffee": data.coffee()[50:146, 60:156],
    "grey": data.camera()[100:201, 100:233],
    "noise": np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8),
}


@pytest.mark.parametrize("quality", [1, 3, 5, 10, 25, 50, 75, 95, 100])
@pytest.mark.parametrize("name", IMAGES)
def test_images_are_those_of_pillow_at_the_same_quality(name, quality):
    """Half a level of 255 apart on average, and more than 8 levels in less than one of 50 values (a rounding that differs)."""
    image = IMAGES[name]
    ours = (compress(as_batch(image) / 255, torch.tensor([float(quality)])) * 255).round()
    theirs = as_batch(by_pillow(image, quality))
    difference = (ours - theirs).abs()
    assert difference.mean() < 0.5 and (difference > 8).float().mean() < 0.02
    assert (theirs - as_batch(image).float()).abs().mean() > 2 * difference.mean() or quality > 90


def test_waves_are_orthonormal_and_a_flat_block_is_one_number():
    assert torch.allclose(cosines() @ cosines().T, torch.eye(8), atol=1e-6)
    flat = torch.full((1, 1, 8, 8), 200.0)
    assert (compressed(flat, torch.full((1, 8, 8), 64.0)) == 200).all()  # 8 x 72 = 576 = 9 x 64
    assert (compressed(flat, torch.full((1, 8, 8), 100.0)) == 203).all()  # 5.76 -> 6; 600 / 8 + 128


def test_each_sample_has_its_own_quality_whatever_the_batch():
    images = as_batch(IMAGES["coffee"]).expand(4, -1, -1, -1) / 255
    quality = torch.tensor([5.0, 20.0, 50.0, 90.0])
    together = compress(images, quality)
    assert all(torch.equal(together[i : i + 1], compress(images[i : i + 1], quality[i : i + 1])) for i in range(4))
    errors = (together - images).abs().mean((1, 2, 3))
    assert (errors.diff() < 0).all()


def test_qualities_are_drawn_from_both_bounds_on(monkeypatch):
    drawn = []
    monkeypatch.setattr("superself.augment.jpeg.compress", lambda images, quality: drawn.append(quality) or images)
    JPEG((3, 5))(torch.rand(300, 1, 8, 8), seeded())
    assert torch.cat(drawn).unique(return_counts=True)[1].tolist() == pytest.approx([100] * 3, abs=25)
    assert torch.cat(drawn).unique().tolist() == [3, 4, 5]


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channels_are_compressed_one_by_one(channels):
    images = torch.rand(2, channels, 13, 21, generator=seeded())
    views = JPEG(30)(images, seeded())
    assert views.shape == images.shape and views.min() >= 0 and views.max() <= 1
    assert torch.equal(views[:, :1], JPEG(30)(images[:, :1], seeded()))


def test_probability_leaves_the_others_as_they_are():
    images = torch.rand(400, 1, 8, 8, generator=seeded())
    changed = (JPEG(5, p=0.25)(images, seeded()) != images).flatten(1).any(1)
    assert 0.18 < changed.float().mean() < 0.32


def test_qualities_out_of_range_are_refused():
    for quality in (0, 101, (5, 200)):
        with pytest.raises(ValueError, match="quality"):
            JPEG(quality)
