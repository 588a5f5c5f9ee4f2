"""open_images takes everything that can be a data set, and says what is wrong with the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from superself.data import BatchLoader, ImageSpec, SequentialBatches, open_images, photos


def test_folder_is_searched_to_any_depth_in_sorted_order_without_hidden_files(tmp_path, noise):
    names = ["b/2.png", "b/1.JPG", "a.bmp", "c/d/e.gif", ".hidden.png", ".cache/x.png", "c/.x/y.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise()).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    images = open_images(str(tmp_path))
    found = [path.relative_to(tmp_path).as_posix() for path in images.paths]
    assert found == ["a.bmp", "b/1.JPG", "b/2.png", "c/d/e.gif"]
    assert not images.skipped and images.labels is None


def test_file_list_and_pattern(folder):
    path = folder(12)
    assert open_images(path / "003.png").paths == [path / "003.png"]
    assert open_images([path / "007.png", str(path / "002.png")]).paths == [path / "007.png", path / "002.png"]
    assert open_images(f"{path}/00[2-4].*").paths == [path / f"00{i}.png" for i in (2, 3, 4)]
    (path / "deep").mkdir()
    (path / "000.png").rename(path / "deep" / "000.png")
    (path / "deep" / "notes.txt").write_text("no image")
    assert len(open_images(f"{path}/**/*")) == 12


def test_arrays_and_tensors_in_every_layout(noise):
    colour = np.stack([noise(6, 7) for _ in range(4)])
    expected = torch.from_numpy(colour).permute(0, 3, 1, 2)
    for source in (colour, expected.numpy(), expected):
        images = open_images(source)
        assert images.in_memory and images.shape == (3, 6, 7)
        assert torch.equal(images.batch(range(4)).images, expected)
    for source in (colour[..., 0], expected[:, 0]):
        assert torch.equal(open_images(source).batch(range(4)).images, expected[:, :1])
    assert open_images(expected, image_size=5).shape == (3, 5, 5)
    assert open_images(expected.double()).dtype == torch.float32


def test_array_with_an_ambiguous_channel_axis_is_refused():
    with pytest.raises(ValueError, match=r"array of shape \(2, 4, 5, 4\) holds the channels; pass torch.from_numpy"):
        open_images(np.zeros((2, 4, 5, 4), np.uint8))
    with pytest.raises(ValueError, match=r"shape \(4, 4\) are not a data set"):
        open_images(np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="value range of int64 pixels is unknown; convert"):
        open_images(torch.zeros(2, 3, 4, 4, dtype=torch.int64))


def test_items_of_every_form(noise):
    pixels = noise(6, 7)
    expected = torch.from_numpy(pixels).permute(2, 0, 1)
    picture = Image.fromarray(pixels)
    for item in (picture, pixels, expected, (picture, 2), [expected, 2, "x"], {"image": picture, "label": 2}):
        images = open_images([item] * 3).load()
        assert torch.equal(images.batch([1]).images[0], expected)
        assert images.labels is None or images.labels.tolist() == [2, 2, 2]
    assert open_images([{"id": 0, "img": picture, "target": torch.tensor(4)}]).load().labels.tolist() == [4]
    assert open_images([{"picture": picture, "labels": [1, 2]}]).load().labels is None


def test_images_and_targets_as_a_tuple_of_arrays(noise):
    colour = np.stack([noise(6, 7) for _ in range(4)])
    for data in (colour, torch.from_numpy(colour).permute(0, 3, 1, 2), colour[..., 0]):
        for labels in (np.arange(4), torch.arange(4), [0, 1, 2, 3], np.arange(4, dtype=np.uint8)):
            images = open_images((data, labels))
            assert images.in_memory and images.labels.tolist() == [0, 1, 2, 3]
            assert images.labels.dtype == torch.int64 and torch.equal(images.sample(4), open_images(data).sample(4))
    assert open_images((colour, np.zeros((4, 5), np.float32))).targets.shape == (4, 5)
    with pytest.raises(ValueError, match="3 targets for 4 images; pass one target per image"):
        open_images((colour, np.arange(3)))
    with pytest.raises(
        ValueError, match=r"a tuple of 3 starts with an array of images; pass \(images, targets\), or torch"
    ):
        open_images((colour, np.arange(4), np.arange(4)))
    assert len(open_images((colour[0], colour[1]))) == 2  # a tuple of two images


def test_class_and_loader_in_place_of_a_data_set_are_explained():
    with pytest.raises(ValueError, match=r"TensorDataset is a class; pass an instance of it, TensorDataset\(\.\.\.\)"):
        open_images(TensorDataset)
    with pytest.raises(ValueError, match="a DataLoader has no length or no items by number; pass its .dataset"):
        open_images(DataLoader([1, 2]))


def test_undecoded_bytes_are_explained():
    with pytest.raises(ValueError, match="an image of type bytes is not decoded; .*Image.open"):
        open_images([b"\x89PNG", b"\x89PNG"])


def test_read_opens_custom_formats(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.raw").write_bytes(bytes([i] * 12))
    images = open_images(tmp_path, read=read_raw)
    assert images.shape == (1, 3, 4) and images.load().batch([2]).images.unique().tolist() == [2]


def read_raw(path):
    return np.frombuffer(path.read_bytes(), np.uint8).reshape(3, 4)


def test_planes_of_stacks_are_chosen_when_the_data_set_is_opened(tmp_path):
    planes = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    tifffile.imwrite(tmp_path / "stack.tif", planes, imagej=True, metadata={"axes": "ZYX"})
    with pytest.raises(ValueError, match='a stack of 2 planes .*pass planes="channels"'):
        open_images(tmp_path)
    for chosen, expected in (("channels", [0, 1]), (1, [1]), ([1, 0], [1, 0]), ((0,), [0])):
        images = open_images(tmp_path, planes=chosen)
        assert images.shape == (len(expected), 3, 4)
        assert np.array_equal(images.load().batch([0]).images[0].numpy(), planes[expected])
    fingerprints = {open_images(tmp_path, planes=chosen).fingerprint for chosen in (0, 1, (0, 1), "channels")}
    assert len(fingerprints) == 4
    for wrong in ("all", -1, 1.5, (), True, ("a",)):
        with pytest.raises(ValueError, match='planes=.* is unknown; pass "channels", a number or a tuple of numbers'):
            open_images(tmp_path, planes=wrong)
    with pytest.raises(ValueError, match="planes= is for TIFF files, and this data set is a Tensor"):
        open_images(torch.zeros(2, 3, 4, 4), planes=0)
    with pytest.raises(ValueError, match="planes= is for TIFF files that are read without read="):
        open_images(tmp_path, planes=0, read=read_raw)


def test_planes_are_chosen_in_class_folders_too(tmp_path):
    (tmp_path / "a").mkdir()
    tifffile.imwrite(tmp_path / "a" / "stack.tif", np.zeros((2, 3, 4), np.uint8), imagej=True, metadata={"axes": "TYX"})
    assert open_images(f"imagefolder:{tmp_path}", planes="channels").shape == (2, 3, 4)


def test_opened_data_set_is_returned_unchanged():
    images = open_images(torch.zeros(2, 3, 4, 4))
    assert open_images(images) is images
    with pytest.raises(ValueError, match="is open already; pass image_size"):
        open_images(images, image_size=4)


def test_without_a_source_it_is_the_folder_dataset_or_only_a_shape(tmp_path, monkeypatch, noise):
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_images(None), ImageSpec)
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "README.md").write_text("images go here")
    assert isinstance(open_images(None), ImageSpec)
    Image.fromarray(noise()).save(tmp_path / "dataset" / "a.png")
    assert open_images(None).paths == [Path("dataset/a.png")]


def test_folder_wins_over_a_name(tmp_path, monkeypatch, noise):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.fromarray(noise()).save(tmp_path / "photos" / "mine.png")
    assert open_images("photos").paths == [Path("photos/mine.png")]


def test_what_is_missing_is_named(folder):
    path = folder(3)
    with pytest.raises(
        FileNotFoundError,
        match='\'nowhere\' is neither an existing path nor the name of a data set; .*"photos", "cifar10"',
    ):
        open_images("nowhere")
    with pytest.raises(FileNotFoundError, match="1 of 2 paths are not files, the first is .*009.png"):
        open_images([path / "001.png", path / "009.png"])
    (path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image files in '.*empty'"):
        open_images(path / "empty")
    with pytest.raises(ValueError, match=r"no image files in '.*\*\.webp'"):
        open_images(f"{path}/*.webp")
    with pytest.raises(ValueError, match="the data set has no images"):
        open_images([])


def test_options_that_do_not_fit_are_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(ValueError, match="a Stream has no length or no items by number"):
        open_images(Stream())
    with pytest.raises(ValueError, match="read= is for files, and this data set is a Tensor"):
        open_images(torch.zeros(2, 3, 4, 4), read=read_raw)
    for size in (0, (4, 4, 4), "large", 2.5):
        with pytest.raises(ValueError, match="is not a size; pass one number of pixels"):
            open_images(torch.zeros(2, 3, 4, 4), image_size=size)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"a": torch.zeros(3, 4, 4)}, r"a dict with 1 keys has no items by number; pass a list of its images"),
        ((i for i in range(3)), "a generator has no length or no items by number"),
        (b"/images", r"a path of type bytes is not text; pass os.fsdecode"),
        ("", "an empty string is not a data set"),
        ("x" * 5000, "is neither an existing path nor the name of a data set"),
        ("no\udce9where", r"no\\xe9where' is neither an existing path"),
        ("a\0b", r"a\\x00b' is neither an existing path"),
        (7, "a int has no length or no items by number"),
        (np.array([None, None]), r"images of shape \(2,\) are not a data set; .*as a list"),
        (np.array([[["x"]]]), "value range of <U1 pixels is unknown"),
        (np.full((2, 4, 4), None), "value range of object pixels is unknown"),
        (np.zeros((2, 5, 5), complex), "value range of complex128 pixels is unknown"),
        (torch.zeros(2, 5, 5, dtype=torch.complex64), "value range of torch.complex64 pixels is unknown"),
        (torch.zeros(2, 3, 5, 5).to_sparse(), r"a tensor that is sparse cannot hold images; .*to_dense"),
        (torch.zeros(2, 3, 5, 5, device="meta"), r"a tensor that has no values \(device meta\) cannot hold images"),
        (torch.zeros(5, 3, 0, 4), r"images of shape \(5, 3, 0, 4\) are not a data set; .*no side of length 0"),
        (np.zeros((5, 0, 4)), r"images of shape \(5, 0, 4\) are not a data set"),
        ((torch.zeros(2, 3, 4, 5), 7), "targets are a int; pass one target per image"),
        ((torch.zeros(2, 3, 4, 5), torch.tensor(7)), "targets are a Tensor; pass one target per image"),
        ([None, None], "the item is None; return an image"),
        ([{}], r"the item is \{\}; return an image"),
        ([()], r"the item is \(\); return an image"),
        ([7, 8], r"a value of type int is not an image; return a Pillow image"),
        ([torch.zeros(3, 0, 4)], r"a tensor of shape \(3, 0, 4\) is not an image"),
        ([np.zeros((0, 4))], r"an array of shape \(0, 4\) is not an image"),
        ([torch.zeros(3, 4, 4).to_sparse()], "is sparse cannot hold images"),
    ],
)
def test_what_is_not_a_data_set_is_explained(source, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message) as found:
        open_images(source)
    str(found.value).encode()


def test_tensor_that_requires_a_gradient_is_a_data_set():
    images = open_images(torch.zeros(2, 3, 4, 5, requires_grad=True))
    assert not images.batch([0]).images.requires_grad
    assert not open_images([torch.zeros(3, 4, 5, requires_grad=True)]).load().batch([0]).images.requires_grad


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"image_size": True}, "image_size=True is not a size"),
        ({"image_size": (8, 0)}, r"image_size=\(8, 0\) is not a size"),
        (
            {"image_size": 10**6},
            "image_size=1000000 gives images of 2794 GiB, more than the 1 GiB that one image may take",
        ),
        (
            {"memory_limit": "2GB"},
            "memory_limit must be an integer of at least 0, got '2GB' of type str .it is a number of bytes",
        ),
        ({"memory_limit": -1}, "memory_limit must be an integer of at least 0, got -1"),
        ({"on_bad_image": None}, "on_bad_image=None is unknown; pass 'skip' or 'raise'"),
        ({"on_bad_image": ["skip"]}, r"on_bad_image=\['skip'\] is unknown"),
        ({"read": "function"}, "read='function' cannot be called; pass a function from a path"),
        ({"planes": {}}, r"planes=\{\} is unknown"),
    ],
)
def test_options_of_the_wrong_kind_are_explained(option, message):
    with pytest.raises((ValueError, TypeError), match=message):
        open_images(torch.zeros(2, 3, 4, 4), **option)


def test_smallest_image_size_is_one_pixel():
    for channels in (1, 3, 4):
        images = open_images(torch.full((2, channels, 4, 4), 7, dtype=torch.uint8), image_size=1)
        assert images.shape == (channels, 1, 1) and images.batch([0]).images.unique().tolist() == [7]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"num_workers": -1}, "num_workers must be an integer of at least 0, got -1"),
        ({"num_workers": 1.0}, "num_workers must be an integer of at least 0, got 1.0"),
        ({"collate_fn": 3}, "collate_fn=3 cannot be called"),
        ({"timeout": 0}, "timeout must be a number above 0, got 0 .it is the number of seconds"),
        ({"timeout": "10min"}, "timeout must be a number above 0, got '10min'"),
    ],
)
def test_arguments_of_the_loader_are_checked(argument, message):
    with pytest.raises((ValueError, TypeError), match=message):
        BatchLoader(open_images(torch.zeros(2, 3, 4, 4)), SequentialBatches(2, 1), **argument)


@pytest.mark.parametrize(
    "argument", [{"size": 0}, {"size": True}, {"size": "64"}, {"count": 0}, {"count": 2.5}, {"split": []}]
)
def test_arguments_of_photos_are_checked(argument):
    (name,) = argument
    with pytest.raises((ValueError, TypeError), match=rf"{name}(=\[\] is unknown| must be an integer of at least 1)"):
        photos(**argument)
