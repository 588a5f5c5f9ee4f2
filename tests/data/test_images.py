"""Images: places, replacements for broken images, memory, and what is refused."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from superself.data import Images, ImageSpec, open_images


class Noisy(Dataset):
    """Items that differ at each read."""

    def __len__(self):
        return 12

    def __getitem__(self, place):
        return torch.rand(3, 8, 8), place


class SeldomFlipped(Dataset):
    """Items that are nearly always the same."""

    def __len__(self):
        return 12

    def __getitem__(self, place):
        image = torch.arange(4.0).expand(1, 4, 4)
        return image.flip(2) if random.random() < 0.001 else image


class Faulty(Dataset):
    """Labelled items, of which one cannot be read."""

    def __len__(self):
        return 40

    def __getitem__(self, place):
        if place == 7:
            raise OSError("the disk has a scratch")
        return torch.full((1, 4, 4), place, dtype=torch.uint8), place % 3


def test_broken_image_is_replaced_by_the_next_and_the_index_says_so(folder):
    images = open_images(folder(60, broken=[7, 8, 59]))
    batch = images.batch([6, 7, 8, 9, 59])
    assert batch.index.tolist() == [6, 9, 9, 9, 0]
    assert torch.equal(batch.images[1], batch.images[3])
    assert len(images) == 60
    assert [name[-7:] for name in images.skipped] == ["007.png", "008.png", "059.png"]


def test_names_and_places_of_broken_images_are_known(folder):
    path = folder(60, broken=[7, 59])
    Image.new("RGB", (8, 8)).save(path / "020.png", format="bmp")
    (path / "020.png").write_bytes((path / "020.png").read_bytes()[:120])  # found only when it is decoded
    disk, memory = open_images(path), open_images(path).load()
    assert disk.names == memory.names == [str(path / f"{place:03d}.png") for place in range(60)]
    assert disk.broken_places().tolist() == [7, 59] and memory.broken_places().tolist() == [7, 20, 59]
    disk.batch(range(60))
    assert torch.equal(disk.broken_places(), memory.broken_places())
    items = open_images([torch.zeros(1, 2, 2)] * 2)
    assert items.names == ["item 0", "item 1"] and items.broken_places().shape == (0,)
    assert ImageSpec((3, 8, 8), 5).names == [] and ImageSpec((3, 8, 8), 5).broken_places().shape == (0,)


def test_memory_and_disk_give_the_same(folder):
    path = folder(60, broken=[7, 8, 59])
    disk, memory = open_images(path), open_images(path).load()
    assert memory.in_memory and not disk.in_memory
    ours, theirs = disk.batch(range(60)), memory.batch(range(60))
    assert torch.equal(ours.images, theirs.images) and torch.equal(ours.index, theirs.index)
    assert disk.skipped == memory.skipped
    assert torch.equal(disk.sample(16), memory.sample(16))


def test_truncated_file_is_found_when_it_is_decoded(folder, noise):
    path = folder(30)
    Image.fromarray(noise(8, 8)).save(path / "004.png")
    (path / "004.png").write_bytes((path / "004.png").read_bytes()[:120])
    for images in (open_images(path), open_images(path).load()):
        assert images.batch([4]).index.tolist() == [5]
        assert "004.png" in next(iter(images.skipped))


def test_more_than_five_percent_broken_stops_with_the_list(folder):
    path = folder(40, broken=[3, 5])
    assert len(open_images(path).skipped) == 2
    (path / "006.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"3 of 40 images cannot be read, more than 5%; .*003.png .*006.png"):
        open_images(path)


def test_list_of_broken_images_is_cut_at_ten(folder):
    with pytest.raises(ValueError, match=r"014.png \(UnidentifiedImageError.*; and 5 more"):
        open_images(folder(30, broken=range(5, 20)))


def test_on_bad_image_raise_stops_at_the_first(folder):
    with pytest.raises(ValueError, match='1 of 60 images cannot be read and on_bad_image="raise"'):
        open_images(folder(60, broken=[7]), on_bad_image="raise")


def test_data_set_without_any_readable_image_is_an_error(folder):
    with pytest.raises(ValueError, match="none of the images can be read: .*000.png"):
        open_images(folder(1, broken=[0]))


def test_sizes_must_agree_or_be_given(tmp_path, noise):
    Image.fromarray(noise(8, 8)).save(tmp_path / "a.png")
    Image.fromarray(noise(9, 12)).save(tmp_path / "b.png")
    with pytest.raises(
        ValueError, match=r"a.png is 8 x 8 \(1 image\), .*b.png is 9 x 12 \(1 image\); pass image_size="
    ):
        open_images(tmp_path)
    images = open_images(tmp_path, image_size=(6, 5))
    assert images.shape == (3, 6, 5) and images.load().batch([0, 1]).images.shape == (2, 3, 6, 5)
    assert "8 x 8 to 9 x 12 pixels stored as 6 x 5" in images.describe()


def test_any_colour_image_makes_three_channels(tmp_path, noise):
    Image.fromarray(noise(8, 8, 1)).save(tmp_path / "a.png")
    assert open_images(tmp_path).shape == (1, 8, 8)
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "b.png")
    grey, colour = open_images(tmp_path).batch([0, 1]).images
    assert torch.equal(grey[0], grey[2]) and not torch.equal(colour[0], colour[2])


def test_array_of_other_channels_counts_as_broken(tmp_path, noise):
    for i in range(30):
        np.save(tmp_path / f"{i:02d}.npy", noise(8, 8, 5 if i == 3 else 4))
    images = open_images(tmp_path)
    assert images.shape == (4, 8, 8) and images.batch([3]).index.tolist() == [4]
    assert list(images.skipped.values()) == ["5 channels, the others have 4"]


def test_eight_bit_files_among_sixteen_bit_ones_keep_their_brightness(tmp_path, noise):
    np.save(tmp_path / "deep.npy", noise(8, 8, 1, np.uint16))
    np.save(tmp_path / "flat.npy", np.full((8, 8), 255, np.uint8))
    images = open_images(tmp_path).load()
    assert images.dtype == torch.uint16
    assert (images.batch([1]).images.int() == 65535).all()


def test_float_and_integer_files_do_not_mix(tmp_path, noise):
    np.save(tmp_path / "a.npy", noise(8, 8, 1))
    np.save(tmp_path / "b.npy", np.zeros((8, 8), np.float32))
    with pytest.raises(
        ValueError, match=r"a.npy is uint8 and .*b.npy is float32 \(1 and 1 images\); .* convert one kind"
    ):
        open_images(tmp_path)


def test_too_large_for_the_limit_stays_on_disk(folder):
    images = open_images(folder(10), memory_limit=1000).load()
    assert not images.in_memory
    assert "decoded while training (0.0 MiB > limit 0.0 MiB)" in images.describe()


def test_random_items_stay_random_and_leave_the_random_state_alone():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    images = open_images(Noisy()).load()
    sample = images.sample(4)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert not images.in_memory and "items differ from one read to the next" in images.describe()
    assert not torch.equal(images.batch([0]).images, images.batch([0]).images)
    assert torch.equal(sample, images.sample(4))
    assert images.labels is None and images.batch([5, 2]).target.tolist() == [5, 2]


def test_items_that_are_seldom_random_are_noticed():
    assert not open_images(SeldomFlipped()).load().in_memory


def test_items_that_are_the_same_each_time_are_kept_in_memory_with_their_labels():
    data = TensorDataset(torch.randint(256, (20, 3, 8, 8)).byte(), torch.arange(20))
    images = open_images(data)
    assert images.labels is None and images.load().in_memory
    assert torch.equal(images.labels, torch.arange(20))
    assert torch.equal(images.batch([3, 1]).images, data.tensors[0][[3, 1]])


def test_item_that_cannot_be_read_is_skipped_and_delivers_the_label_of_its_replacement():
    for images in (open_images(Faulty()), open_images(Faulty()).load()):
        batch = images.batch([6, 7])
        assert batch.index.tolist() == [6, 8] and batch.target.tolist() == [0, 2]
        assert batch.images[:, 0, 0, 0].tolist() == [6, 8]
        assert images.skipped == {"item 7": "OSError: the disk has a scratch"}
    assert images.labels[7] == -1


def test_unprobed_item_of_another_size_counts_as_broken():
    items = [torch.zeros(1, 8, 9 if i == 1 else 8) for i in range(40)]
    images = open_images(items).load()
    assert images.skipped == {"item 1": "ValueError: 8 x 9 pixels, the others have 8 x 8; pass image_size="}


def test_single_items_are_an_image_with_its_label_if_it_has_one(folder):
    images = open_images(folder(5))
    assert images[3].shape == (3, 8, 8) and torch.equal(images[-1], images[4]) and len(list(images)) == 5
    labelled = open_images(TensorDataset(torch.zeros(4, 3, 8, 8), torch.tensor([5, 6, 7, 8])))
    assert labelled[2][1] == 7


def test_works_with_the_tools_of_torch():
    labelled = open_images(TensorDataset(torch.arange(4.0).view(4, 1, 1, 1), torch.tensor([5, 6, 7, 8])))
    (batch,) = DataLoader(Subset(labelled, [3, 1]), batch_size=2)
    assert batch[0].flatten().tolist() == [3.0, 1.0] and batch[1].tolist() == [8, 6]
    again = open_images(Subset(labelled, [3, 1])).load()
    assert again.labels.tolist() == [8, 6]


def test_sample_is_spread_evenly():
    images = open_images(torch.arange(100.0).view(100, 1, 1, 1))
    assert images.sample(4).flatten().tolist() == [0.0, 25.0, 50.0, 75.0]
    assert len(images.sample(1000)) == 100


def test_sixteen_bit_images_are_batched_from_memory(noise):
    data = np.stack([noise(8, 8, 1, np.uint16) for _ in range(6)])
    assert np.array_equal(open_images(data).batch([5, 0]).images.numpy()[:, 0], data[[5, 0]])


def test_description_counts_what_is_used_and_skipped(folder):
    images = open_images(folder(60, broken=[7]))
    text = "60 images found, 59 used, 1 skipped; 3 channels, uint8; 8 x 8 pixels; "
    assert images.describe() == text + "not in memory yet (0.0 MiB)"
    assert images.load().describe() == text + "0.0 MiB in memory"


def test_image_spec_has_a_shape_and_no_images():
    unknown = ImageSpec((1, 28, 28), count=5)
    assert isinstance(unknown, Images) and len(unknown) == 5 and unknown.shape == (1, 28, 28)
    assert unknown.load() is unknown and not unknown.in_memory and "1 x 28 x 28" in unknown.describe()
    for fetch in (lambda: unknown[0], lambda: unknown.batch([0]), lambda: unknown.sample(4)):
        with pytest.raises(ValueError, match=r"there is no data set, only the shape \(1, 28, 28\)"):
            fetch()


def test_unknown_option_is_refused(folder):
    with pytest.raises(ValueError, match="on_bad_image='ignore' is unknown"):
        open_images(folder(2), on_bad_image="ignore")
