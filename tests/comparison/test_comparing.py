import re

import numpy as np
import pytest
import torch
from comparable import Channel, Directions, network, stripes, told
from PIL import Image
from torch import nn

from superself import compare
from superself.data import Images, Preprocessing, open_images
from superself.data.sources import TensorSource
from superself.evaluation import features, knn_accuracy, linear_accuracy


def test_rows_are_what_the_measures_give():
    train, test, trained, random = stripes(60, 0), stripes(31, 1), Directions(), network()
    rows = compare(trained, train, test, random=random, k=5, print=False).rows
    assert list(rows) == ["random initialised", "trained"]
    for name, backbone in (("random initialised", random), ("trained", trained)):
        known, asked = (features(backbone, part, preprocessing=Preprocessing.of(train)) for part in (train, test))
        slow = {"knn": knn_accuracy(known, asked, k=5), "linear": linear_accuracy(known, asked)}
        assert rows[name] == pytest.approx(slow)


def test_a_backbone_that_sees_the_classes_beats_the_random_one(capsys):
    comparison = compare(Directions(), stripes(60, 0), stripes(31, 1), random=network(), k=5)
    printed = capsys.readouterr().out
    assert printed == f"{comparison}\n"
    assert comparison.rows["trained"]["knn"] > comparison.rows["random initialised"]["knn"] + 0.2
    assert "training helped" in printed


def test_the_table_says_what_was_measured():
    comparison = compare(Directions(), stripes(60, 0), stripes(31, 1), random=network(), k=5, print=False)
    lines = str(comparison).splitlines()
    rows = comparison.rows
    assert lines[0].split("  ")[0] == "backbone" and lines[0].endswith("kNN (k=5)    linear")
    for line, name in zip(lines[1:], rows, strict=False):
        assert re.fullmatch(rf"{name} +{rows[name]['knn']:.1%} +{rows[name]['linear']:.1%}", line)
    gain = 100 * (rows["trained"]["knn"] - rows["random initialised"]["knn"])
    assert lines[3].split()[:2] == ["gain", f"{gain:+.1f}"]
    # 31 test images, 11 of the most frequent class of the training set; 0.5 / sqrt(31) = 9.0 %
    assert "60 training and 31 test images of 3 classes. Majority-class accuracy: 35.5%" in comparison.text
    assert "Standard error of an accuracy: up to 9.0%" in comparison.text
    assert "the 5 training images" in comparison.text and "similarity / 0.1" in comparison.text
    assert "Random initialised: passed as random=." in comparison.text


def test_equal_backbones_do_not_differ():
    random = network()
    found = compare(random, stripes(60, 0), stripes(31, 1), random=random, k=5, print=False)
    for measure in ("kNN", "linear"):
        assert f"{measure}: no significant difference (+0.0 ± " in found.text


def test_a_tiny_gain_is_not_called_an_improvement():
    found = compare(
        Channel(1), told(60, (0, 0, 0)), told(100, (6, 5, 0)), random=Channel(0), how=("knn",), k=5, print=False
    )
    assert found.rows["random initialised"]["knn"] == pytest.approx(0.94) and found.rows["trained"]["knn"] == 0.95
    # one discordant image: sqrt(1 + 1 - 1 / 102) / 102 = 0.01383, by 1.9837 for 101 degrees of freedom
    assert "kNN: no significant difference (+1.0 ± 2.7 points)." in found.text
    assert "helped" not in found.text


def test_a_gain_and_a_loss_are_named_with_their_intervals():
    train, test = stripes(60, 0), stripes(31, 1)
    gain = compare(Directions(), train, test, random=network(), k=5, print=False)
    loss = compare(network(), train, test, random=Directions(), k=5, print=False)
    assert re.search(r"kNN: training helped \(\+\d+\.\d ± \d+\.\d points\)\.", gain.text)
    assert re.search(r"kNN: training did harm \(-\d+\.\d ± \d+\.\d points\)\.", loss.text)
    measure, first, second, found = gain.verdicts[0]
    assert (measure, first, second) == ("knn", "trained", "random initialised")
    assert found.value == pytest.approx(gain.rows["trained"]["knn"] - gain.rows["random initialised"]["knn"])


def test_same_numbers_twice_and_the_random_state_does_not_move():
    trained = network()
    torch.rand(5)
    state = torch.get_rng_state()
    first = compare(trained, stripes(60, 0), stripes(31, 1), k=5, print=False)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert compare(trained, stripes(60, 0), stripes(31, 1), k=5, print=False) == first


def test_the_random_backbone_has_other_weights_and_leaves_the_trained_one_alone():
    trained = network().train()
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    other = compare(trained, stripes(60, 0), stripes(31, 1), k=5, seed=3, print=False)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert all(module.training for module in trained)
    assert "the same network, freshly initialised with seed 3, batch norm statistics measured" in other.text


def test_batch_norms_of_the_random_backbone_get_the_statistics_of_training_images():
    seen = []

    class Spy(nn.BatchNorm2d):
        def forward(self, x):
            if not self.training:
                seen.append((self.running_mean.clone(), self.running_var.clone()))
            return super().forward(x)

    train = stripes(60, 0)
    trained = nn.Sequential(Spy(3), nn.Conv2d(3, 4, 3))
    compare(trained, train, stripes(31, 1), k=5, print=False)
    pixels = Preprocessing.of(train)(train.batch(range(60)).images)
    mean, variance = seen[0]  # the random backbone comes first
    assert torch.allclose(mean, pixels.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(variance, pixels.var((0, 2, 3)), atol=1e-4)
    assert torch.equal(seen[-1][0], torch.zeros(3))  # the trained one is measured as it is


def test_parameters_that_cannot_be_reset_are_named():
    trained = network()
    trained.append(nn.Module())
    trained[-1].forward = lambda x: x
    trained[-1].position = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match=r"parameters 4\.position cannot be reset.*as random="):
        compare(trained, stripes(60, 0), stripes(31, 1), print=False)


def test_classes_are_matched_by_name():
    train, test = stripes(60, 0), stripes(31, 1, classes=("flat", "columns", "rows"))
    moved = compare(Directions(), train, test, random=network(), k=5, print=False)
    assert moved == compare(Directions(), train, stripes(31, 1), random=network(), k=5, print=False)
    strange = stripes(31, 1, classes=("columns", "rows", "flat", "dots"))
    with pytest.raises(ValueError, match=r"test has the classes \['dots'\], which train does not have"):
        compare(Directions(), train, strange, random=network(), k=5, print=False)


def test_class_folders_are_compared_at_the_size_of_the_preprocessing(tmp_path):
    for split in ("train", "test"):
        for place in range(12):
            folder = tmp_path / split / f"class{place % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            grey = np.full((9 + place, 12, 3), 60 + 100 * (place % 2) + place, dtype=np.uint8)
            Image.fromarray(grey).save(folder / f"{place}.png")
    trained = network()
    trained.preprocessing = Preprocessing((3, 8, 8), "uint8", (0.5,) * 3, (0.25,) * 3)
    folders = (f"imagefolder:{tmp_path / split}" for split in ("train", "test"))
    assert "12 training and 12 test images of 2 classes" in compare(trained, *folders, k=3, print=False).text


@pytest.mark.parametrize("role", ["train", "test"])
def test_images_without_labels_are_an_error(role):
    data = {"train": stripes(60, 0), "test": stripes(31, 1)}
    data[role] = open_images(data[role].batch(range(31)).images)
    with pytest.raises(
        ValueError, match=rf'{role} has no labels.*"imagefolder:PATH", or a Dataset of \(image, label\)'
    ):
        compare(network(), **data, print=False)


@pytest.mark.parametrize("numbers", [(1, 2, 3), (0, 5, 10), (-1, 0, 1)])
def test_how_classes_are_numbered_does_not_matter(numbers):
    def renamed(part):
        return Images(TensorSource(part.source.data, torch.tensor(numbers)[part.labels]))

    train, test = stripes(60, 0), stripes(31, 1)
    usual = compare(Directions(), train, test, random=network(), k=5, print=False).rows
    found = compare(Directions(), renamed(train), renamed(test), random=network(), k=5, print=False).rows
    assert found == usual
