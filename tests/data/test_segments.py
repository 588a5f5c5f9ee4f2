"""Segment maps: who makes them, where they come from, and that each is made once."""

from __future__ import annotations

import time
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from superself.data import Segmenter, open_images, segment_data_set
from superself.data import segments as module
from superself.data.segments import number_by_size


def two_halves(n=6, channels=3):
    """Images whose left third is dark and whose rest is bright, each with another brightness."""
    images = torch.full((n, channels, 12, 12), 200, dtype=torch.uint8) + torch.arange(n, dtype=torch.uint8).view(
        -1, 1, 1, 1
    )
    images[:, :, :, :4] = 10
    return images


class Masked(Dataset):
    def __init__(self, images, masks):
        self.images, self.masks = images, masks

    def __len__(self):
        return len(self.images)

    def __getitem__(self, place):
        return {"image": self.images[place], "mask": self.masks[place]}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_felzenszwalb_separates_regions_and_numbers_them_by_size(channels, dtype):
    image = two_halves(1, channels)[0]
    image = image if dtype == torch.uint8 else image / 255
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Segmenter(scale=20).segment(image)
    assert found.dtype == torch.uint8 and found.shape == (12, 12)
    assert (found[:, 5:] == 1).all() and (found[:, :3] == 2).all()


def test_a_larger_scale_gives_fewer_segments():
    image = torch.randint(256, (3, 24, 24), generator=torch.Generator().manual_seed(0)).byte()
    counts = [Segmenter(scale=scale).segment(image).max().item() for scale in (2, 10, 200)]
    assert counts[0] > counts[1] > counts[2] == 1
    assert Segmenter(scale=2, min_size=100).segment(image).max() < counts[0]


def test_bounds_of_the_scale_give_each_image_its_own_and_always_the_same(monkeypatch):
    used = []
    monkeypatch.setattr(
        "skimage.segmentation.felzenszwalb", lambda pixels, scale, **_: used.append(scale) or pixels[..., 0] * 0
    )
    for _ in range(2):
        for image in two_halves(4):
            Segmenter(scale=(50, 150)).segment(image)
    assert used[:4] == used[4:] and len(set(used)) == 4 and min(used) >= 50 and max(used) <= 150


def test_grid_has_equal_cells_and_numbers_from_1():
    found = Segmenter("grid", grid=2).grid_map(4, 6)
    assert found.tolist() == [[1, 1, 1, 2, 2, 2]] * 2 + [[3, 3, 3, 4, 4, 4]] * 2
    assert Segmenter("grid", grid=15).grid_map(16, 16).unique().tolist() == list(range(1, 226))


def test_masks_of_the_data_set_keep_0_as_no_segment():
    image = torch.zeros(3, 2, 3)
    small = torch.tensor([[0, 1, 1], [7, 0, 0]])
    assert torch.equal(Segmenter("dataset").segment(image, small.byte()), small.byte())
    assert Segmenter("dataset").segment(image, (small * 1000)[None]).tolist() == [[0, 1, 1], [2, 0, 0]]
    assert Segmenter("dataset").segment(image, small == 1).tolist() == [[0, 1, 1], [0, 0, 0]]
    assert number_by_size(torch.tensor([[-1, 0], [0, 9]])).tolist() == [[0, 0], [0, 1]]


def test_of_many_segments_the_largest_255_are_kept():
    labels = torch.arange(1, 401).repeat_interleave(torch.arange(1, 401) // 100 + 1)
    found = number_by_size(labels)
    assert found.unique().tolist() == list(range(256)) and (found[labels >= 200] > 0).all()
    assert (found[labels < 100] == 0).all()


@pytest.mark.parametrize("mask", [None, torch.zeros(5, 5).long(), torch.zeros(2, 3)], ids=["none", "size", "float"])
def test_missing_and_unfit_masks_are_refused(mask):
    with pytest.raises(ValueError, match=r'segments="dataset" needs a map of integers .*\(2, 3\).*; return'):
        Segmenter("dataset").segment(torch.zeros(3, 2, 3), mask)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_gets_the_maps_of_its_images_in_their_order(workers, monkeypatch):
    monkeypatch.setattr(module, "PART", 2)
    images = open_images(two_halves(5)).load()
    state = torch.get_rng_state()
    maps = segment_data_set(images, Segmenter(scale=20), workers)
    assert torch.equal(torch.get_rng_state(), state), "whoever finds the maps in a file draws nothing"
    assert torch.equal(
        maps, torch.stack([Segmenter(scale=20).segment(image) for image in images.batch(range(5)).images])
    )
    delivered = images.with_masks(maps)
    assert torch.equal(delivered.batch([3, 1]).mask, maps[[3, 1]]) and images.batch([0]).mask is None
    assert torch.equal(delivered.items([2])[0][0].mask, maps[2])


def test_broken_images_have_no_map_and_do_not_disturb_the_others(folder):
    images = open_images(folder(30, broken=[4])).load()
    maps = segment_data_set(images, Segmenter(scale=5))
    assert not maps[4].any() and (maps[[3, 5]] > 0).all()
    batch = images.with_masks(maps).batch([4, 5])
    assert batch.index.tolist() == [5, 5] and torch.equal(batch.mask[0], maps[5])


def test_masks_of_items_are_compacted():
    images = open_images(Masked(two_halves(3), torch.arange(3).view(3, 1, 1).expand(3, 12, 12) * 1000)).load()
    maps = segment_data_set(images, Segmenter("dataset"))
    assert maps.flatten(1).unique(dim=1).flatten().tolist() == [0, 1, 1]


def test_maps_that_took_long_are_stored_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr("superself.data.sources.FINGERPRINTED", 1)  # the fingerprint does not see the last image
    images, segmenter = open_images(two_halves(4)).load(), Segmenter(scale=20)
    quick = segment_data_set(images, segmenter, folder=tmp_path)
    assert list(tmp_path.iterdir()) == [], "a small data set leaves no file"
    monkeypatch.setattr(module, "WORTH_STORING", 0)
    segment_data_set(images, segmenter, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("segments-") and path.suffix == ".npz"
    calls = count_calls(monkeypatch)
    assert torch.equal(segment_data_set(images, segmenter, folder=tmp_path), quick) and calls == []
    segment_data_set(images, Segmenter(scale=21), folder=tmp_path)
    assert len(calls) == 4, "another scale"
    changed = two_halves(4)
    changed[3, 0, 0, 0] += 1
    segment_data_set(open_images(changed).load(), segmenter, folder=tmp_path)
    assert len(calls) == 8, "other pixels"
    path.write_bytes(path.read_bytes()[:-50])
    assert torch.equal(segment_data_set(images, segmenter, folder=tmp_path), quick) and len(calls) == 12, (
        "a damaged file"
    )
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    assert torch.equal(segment_data_set(images, segmenter, folder=tmp_path), quick) and len(calls) == 16, "another file"


def count_calls(monkeypatch):
    calls, original = [], Segmenter.segment
    monkeypatch.setattr(Segmenter, "segment", lambda self, *given: calls.append(1) or original(self, *given))
    return calls


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WORTH_STORING", 0)
    images = open_images(two_halves(2)).load()
    with pytest.warns(UserWarning, match="segments could not be stored in .*missing"):
        segment_data_set(images, Segmenter(scale=20), folder=tmp_path / "missing")


def test_segments_of_a_small_image_take_milliseconds():
    image = np.random.default_rng(0).integers(0, 255, (3, 32, 32), dtype=np.uint8)
    Segmenter().segment(torch.from_numpy(image))
    began = time.perf_counter()
    Segmenter().segment(torch.from_numpy(image))
    assert time.perf_counter() - began < 0.5
