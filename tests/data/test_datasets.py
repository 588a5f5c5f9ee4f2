"""Data sets by name, read from small files in the layout of torchvision."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from superself.data import cifar10, open_images, stl10


@pytest.fixture
def small_cifar10(tmp_path, monkeypatch):
    """Two images a file, in the layout of the real ones, without their check sums."""
    folder = tmp_path / "dataset" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    files = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for number, name in enumerate(files):
        content = {"data": np.full((2, 3072), number, np.uint8), "labels": [number, 9]}
        (folder / name).write_bytes(pickle.dumps(content))
    names = [f"class {i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[name, None] for name in files[:5]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [[files[5], None]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": None})
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small_stl10(tmp_path, monkeypatch):
    """Two images a split, in the layout of the real ones, without their check sums."""
    folder = tmp_path / "dataset" / "stl10_binary"
    folder.mkdir(parents=True)
    for split in ("train", "test", "unlabeled"):
        np.arange(2 * 3 * 96 * 96, dtype=np.uint8).tofile(folder / f"{split}_X.bin")
        np.array([1, 10], np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("airplane\nbird")
    for files in ("train_list", "test_list"):
        without = [[name, None] for name, _ in getattr(datasets.STL10, files)]
        monkeypatch.setattr(datasets.STL10, files, without)
    monkeypatch.chdir(tmp_path)


def test_cifar10_by_name_and_by_function(small_cifar10):
    train, test = open_images("cifar10"), open_images("cifar10:test")
    assert train.shape == (3, 32, 32) and len(train) == 10 and len(test) == 2
    assert train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9] and test.labels.tolist() == [5, 9]
    assert test.batch([0]).images.unique().tolist() == [5] and test.classes[9] == "class 9"
    assert torch.equal(cifar10("train").sample(10), train.sample(10))


def test_stl10_has_three_splits(small_stl10):
    train = open_images("stl10")
    assert train.shape == (3, 96, 96) and train.labels.tolist() == [0, 9] and train.classes == ["airplane", "bird"]
    assert len(open_images("stl10:test", image_size=32)) == 2
    assert stl10("unlabeled").labels is None


def test_missing_files_are_only_downloaded_on_request(tmp_path):
    for name, opener in {"cifar10": cifar10, "stl10": stl10}.items():
        with pytest.raises(FileNotFoundError, match=f"{name} is not in .* run once: python -c .*download=True"):
            opener(root=tmp_path)


def test_unknown_split_is_refused():
    for name in ("photos:all", "cifar10:unlabeled", "stl10:all"):
        with pytest.raises(ValueError, match=f"{name.split(':')[0]} has no split '{name.split(':')[1]}'; pass one of"):
            open_images(name)


def test_imagefolder_labels_by_the_sorted_class_folders(tmp_path, noise):
    for name in ("frog/b/1.png", "frog/2.png", "airplane/1.png", ".hidden/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise()).save(tmp_path / name)
    (tmp_path / "deer").mkdir()
    Image.fromarray(noise()).save(tmp_path / "of_no_class.png")
    images = open_images(f"imagefolder:{tmp_path}")
    assert images.classes == ["airplane", "deer", "frog"]  # a class without images keeps its number
    assert images.labels.tolist() == [0, 2, 2]
    assert images.batch([2, 0]).target.tolist() == [2, 0]


def test_imagefolder_without_class_folders_is_refused(folder):
    with pytest.raises(ValueError, match="has no folders with images in them"):
        open_images(f"imagefolder:{folder(2)}")
