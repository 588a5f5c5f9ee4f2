"""The fingerprint says whether a data set holds the same images at the same places."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

from superself.data import ImageSpec, open_images


def pixels(count=16, seed=0, channels=3):
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.integers(0, 256, (count, channels, 8, 8), dtype=np.uint8))


def fingerprint(source, **options):
    return open_images(source, **options).fingerprint


def test_sixteen_other_images_of_the_same_shape_have_another_fingerprint():
    for kind in (lambda images: images, lambda images: TensorDataset(images), lambda images: list(images)):
        assert fingerprint(kind(pixels())) == fingerprint(kind(pixels()))
        assert fingerprint(kind(pixels())) != fingerprint(kind(pixels(seed=1)))


def test_other_count_order_or_type_has_another_fingerprint():
    data = pixels()
    found = {fingerprint(source) for source in (data, data[:15], data.flip(0), data / 255, data[:, :1])}
    assert len(found) == 5


def test_array_and_tensor_of_the_same_pixels_are_the_same_data_set():
    assert fingerprint(pixels()) == fingerprint(pixels().permute(0, 2, 3, 1).numpy())


def test_image_size_and_loading_do_not_change_it(folder):
    for source in (folder(6), pixels(), TensorDataset(pixels())):
        images = open_images(source)
        assert images.fingerprint == fingerprint(source, image_size=5) == open_images(source).load().fingerprint
        assert open_images(source, image_size=5).load().fingerprint == images.fingerprint


def test_moved_folder_is_the_same_data_set_and_a_changed_one_is_not(folder, tmp_path):
    (tmp_path / "first" / "deep").mkdir(parents=True)
    for place, pixel in enumerate(pixels(4).permute(0, 2, 3, 1)):
        name = "deep/x.png" if place == 3 else f"{place}.png"
        Image.fromarray(pixel.numpy()).save(tmp_path / "first" / name)
    before = fingerprint(tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "second")
    assert fingerprint(tmp_path / "second") == before
    files = sorted((tmp_path / "second").rglob("*.png"))
    assert fingerprint(files) == before and fingerprint(files[::-1]) != before and fingerprint(files[:3]) != before
    (tmp_path / "second" / "0.png").rename(tmp_path / "second" / "9.png")
    assert fingerprint(tmp_path / "second") != before
    (tmp_path / "second" / "9.png").rename(tmp_path / "second" / "0.png")
    assert fingerprint(tmp_path / "second") == before
    Image.new("RGB", (8, 8)).save(tmp_path / "second" / "0.png")
    assert fingerprint(tmp_path / "second") != before


def test_it_is_the_same_in_another_process(folder):
    script = (
        "import sys, torch; from superself.data import open_images; "
        "print(open_images(sys.argv[1]).fingerprint, open_images(torch.arange(48).byte().view(4, 1, 3, 4)).fingerprint)"
    )
    path = folder(3)
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    here = [fingerprint(path), fingerprint(torch.arange(48).byte().view(4, 1, 3, 4))]
    assert done.stdout.split() == here, done.stderr


class Noisy(Dataset):
    """Items that differ at each read."""

    def __init__(self, count=12):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        return torch.rand(3, 8, 8)


def test_random_items_are_known_by_their_number_shape_and_type_alone():
    before = torch.get_rng_state()
    assert fingerprint(Noisy()) == fingerprint(Noisy()) != fingerprint(Noisy(13))
    assert torch.equal(before, torch.get_rng_state())


def test_an_item_that_cannot_be_read_does_not_stop_it():
    class Faulty(Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, place):
            if place == 7:
                raise OSError("the disk has a scratch")
            return torch.full((1, 4, 4), place, dtype=torch.uint8)

    images = open_images(Faulty())
    assert images.fingerprint == open_images(Faulty()).load().fingerprint
    assert fingerprint(Subset(Faulty(), range(30))) != images.fingerprint


def test_it_is_cheap():
    images = open_images(torch.zeros(200_000, 3, 16, 16, dtype=torch.uint8))
    start = time.perf_counter()
    first = images.fingerprint
    assert time.perf_counter() - start < 0.5
    assert images.fingerprint is first


def test_a_shape_without_images_has_none():
    assert ImageSpec((3, 8, 8), 5).fingerprint == ""
