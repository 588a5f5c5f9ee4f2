import numpy as np
import pytest
import torch
from PIL import Image

from superself.data import Labelled, open_images
from superself.evaluation import Features, split
from superself.evaluation.splits import split_places


def named(counts, folder="/data", seed=0):
    """Features with file names, in a random order."""
    names = [f"{folder}/{label}/{place}.png" for label, count in enumerate(counts) for place in range(count)]
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    features = torch.arange(len(names)).float()[order, None]
    return Features(features, torch.tensor(labels)[order], [names[place] for place in order])


def members(part):
    return {path.split("/", 2)[2] for path in part.paths}


def test_order_and_folder_do_not_matter():
    first, second = split(named([20, 7, 1])), split(named([20, 7, 1], "/elsewhere", seed=5))
    assert [members(part) for part in first] == [members(part) for part in second]
    assert members(first[0]).isdisjoint(members(first[1])) and len(first[0]) + len(first[1]) == 28


def test_another_seed_is_another_split():
    assert members(split(named([20, 20]), seed=1)[0]) != members(split(named([20, 20]))[0])


@pytest.mark.parametrize("fraction", [1 / 2, 2 / 3, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_classes_and_the_whole_have_their_fraction_to_within_one_image(fraction, seed):
    counts = [30, 17, 5, 2, 1, 1, 1]
    first, second = split(named(counts), fraction, seed)
    assert abs(len(first) - fraction * sum(counts)) < 1
    for label, count in enumerate(counts):
        assert abs(int((first.labels == label).sum()) - fraction * count) < 1
    assert len(first) + len(second) == sum(counts)


def test_halves_of_small_classes_have_an_image_each():
    first, second = split(named([2] * 9), 1 / 2)
    assert first.labels.bincount().tolist() == second.labels.bincount().tolist() == [1] * 9


def test_parts_keep_the_order_and_belong_together():
    found = named([20, 7])
    for part in split(found):
        places = [found.paths.index(path) for path in part.paths]
        assert places == sorted(places)
        assert torch.equal(part.features, found.features[places]) and torch.equal(part.labels, found.labels[places])


def test_a_file_that_occurs_twice_is_in_one_part():
    paths = [f"/data/{place % 10}.png" for place in range(20)]
    first = split_places(None, paths, 20, 0.5, 0)
    assert torch.equal(first[:10], first[10:]) and first.sum() == 10


def test_without_files_the_place_identifies_an_image():
    first = split(Features(torch.randn(30, 2), torch.arange(30) % 3))
    second = split(Features(torch.randn(30, 5), torch.arange(30) % 3))  # another backbone, the same images
    assert torch.equal(first[0].labels, second[0].labels) and len(first[0]) == 20
    images = open_images((np.arange(30 * 16, dtype=np.uint8).reshape(30, 4, 4), torch.arange(30) % 3))
    assert torch.equal(split(images)[0].labels, first[0].labels)


def test_images_of_files_are_split_with_their_labels(tmp_path):
    paths = []
    for place in range(9):
        paths.append(tmp_path / f"{place}.png")
        Image.fromarray(np.full((6, 5), 20 * place, np.uint8)).save(paths[-1])
    images = open_images(Labelled(tmp_path, {path.name: "ab"[place % 2] for place, path in enumerate(paths)}))
    first, second = split(images)
    assert (len(first), len(second)) == (6, 3) and first.classes == ["a", "b"]
    for part in (first, second):
        for place, path in enumerate(part.paths):
            assert part.batch([place]).images.flatten()[0] == 20 * int(path.stem)
            assert part.labels[place] == int(path.stem) % 2
    again = split(open_images(paths[::-1]))  # without labels, and in another order
    assert sorted(path.name for part in again for path in part.paths) == sorted(path.name for path in paths)


def test_items_of_a_data_set_are_split_with_their_targets():
    class Items(list):
        classes = ["even", "odd"]

    items = Items((torch.full((1, 4, 4), place, dtype=torch.uint8), place % 2) for place in range(8))
    first, second = split(open_images(items), 1 / 2)
    assert first.classes == second.classes == ["even", "odd"]
    shown = [(int(image[0, 0, 0]), target) for part in (first, second) for image, target in part]
    assert sorted(shown) == [(place, place % 2) for place in range(8)] and len(first) == 4


@pytest.mark.parametrize(("images", "fraction"), [(1, 0.5), (3, 0.01)])
def test_an_empty_part_is_an_error(images, fraction):
    with pytest.raises(ValueError, match=f"of {images} images leaves one part empty"):
        split(Features(torch.zeros(images, 1)), fraction)


@pytest.mark.parametrize("fraction", [0, 1])
def test_fraction_must_leave_something(fraction):
    with pytest.raises(ValueError, match=r"fraction must be a number in \(0, 1\)"):
        split(Features(torch.zeros(5, 1)), fraction)
