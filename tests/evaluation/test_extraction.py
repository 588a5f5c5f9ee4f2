import copy
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from superself.data import ImageSpec, Preprocessing, open_images
from superself.evaluation import features

PREPROCESSING = Preprocessing((3, 8, 8), "uint8", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def pixels(images=11, side=8, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (images, channels, side, side), dtype=torch.uint8, generator=generator)


def backbone(channels=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU())


class Labelled(torch.utils.data.Dataset):
    def __init__(self, images, noise=0.0):
        self.images, self.noise = images, noise

    def __len__(self):
        return len(self.images)

    def __getitem__(self, place):
        return self.images[place].float() / 255 + self.noise * torch.rand(()), place % 3


def test_features_equal_one_image_at_a_time():
    network = backbone()
    found = features(network, pixels(), batch_size=4, preprocessing=PREPROCESSING)
    network.eval()
    slow = [network(((image / 255 - 0.5) / 0.25)[None]).mean(dim=(2, 3))[0] for image in pixels()]
    assert found.features.shape == (11, 4)
    assert torch.allclose(found.features, torch.stack(slow), atol=1e-6)
    assert found.labels is None


def test_batches_do_not_change_the_features():
    whole = features(backbone(), pixels(), preprocessing=PREPROCESSING).features
    for batch_size in (1, 4, 11):
        parts = features(backbone(), pixels(), batch_size=batch_size, preprocessing=PREPROCESSING).features
        assert torch.allclose(parts, whole, atol=1e-6)


def test_nothing_of_the_backbone_and_the_random_state_moves():
    network = backbone().train()
    network[1].eval()  # one module in a mode of its own
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    features(network, Labelled(pixels(), noise=0.1), preprocessing=PREPROCESSING)
    assert [module.training for module in network] == [True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_modes_are_restored_after_an_error():
    network = nn.Sequential(nn.Dropout(), nn.Conv2d(3, 4, 9))  # larger than the images
    with pytest.raises(RuntimeError):
        features(network, pixels(), preprocessing=PREPROCESSING)
    assert network[0].training


def test_the_preprocessing_of_the_backbone_is_used_unless_another_is_given():
    network = backbone()
    measured = features(network, pixels()).features
    assert torch.equal(
        measured, features(network, pixels(), preprocessing=Preprocessing.of(open_images(pixels()))).features
    )
    network.preprocessing = PREPROCESSING
    carried = features(network, pixels()).features
    assert torch.equal(carried, features(backbone(), pixels(), preprocessing=PREPROCESSING).features)
    assert not torch.allclose(carried, measured)


def test_files_are_read_at_the_size_of_the_preprocessing(tmp_path):
    for side in (12, 20):
        Image.fromarray(np.full((side, side, 3), side, dtype=np.uint8)).save(tmp_path / f"{side}.png")
    network = nn.Flatten()
    assert features(network, tmp_path, preprocessing=PREPROCESSING).features.shape == (2, 3 * 8 * 8)
    opened = open_images(tmp_path, image_size=10)
    assert features(network, opened, preprocessing=PREPROCESSING).features.shape == (2, 3 * 10 * 10)


def test_labels_come_with_the_features_of_a_labelled_data_set():
    expected = torch.arange(11) % 3
    opened = open_images(Labelled(pixels()))
    assert torch.equal(features(backbone(), opened, batch_size=4).labels, expected)
    assert torch.equal(features(backbone(), opened.load(), batch_size=4).labels, expected)


class Brightness(nn.Module):
    """One feature: the mean, in the units of the file."""

    def forward(self, images):
        return (images.mean((1, 2, 3))[:, None] * 0.25 + 0.5) * 255


def folder_with_broken_files(path):
    """24 files of two classes; the brightness of a file is 10 times its number. 10.png and 23.png cannot be decoded."""
    for number in range(24):
        folder = path / f"class{number // 12}"
        folder.mkdir(exist_ok=True)
        file = folder / f"{number:02}.png"
        Image.fromarray(np.full((8, 8, 3), 10 * number, dtype=np.uint8)).save(file)
        if number in (10, 23):
            content = bytearray(file.read_bytes())
            content[-30:] = bytes(30)  # the header stays whole
            file.write_bytes(content)
    return path


@pytest.fixture
def broken(tmp_path, monkeypatch):
    monkeypatch.setattr("superself.data.images.BROKEN_SHARE", 0.1)
    return folder_with_broken_files(tmp_path)


def opened(path, loaded):
    images = open_images(f"imagefolder:{path}", image_size=8)
    return images.load() if loaded else images


@pytest.mark.parametrize("loaded", [False, True])
def test_unreadable_files_have_no_row_and_the_others_keep_name_and_label(broken, loaded):
    found = features(Brightness(), opened(broken, loaded), batch_size=5, preprocessing=PREPROCESSING)
    numbers = [number for number in range(24) if number not in (10, 23)]
    assert torch.allclose(found.features[:, 0], 10.0 * torch.tensor(numbers), atol=1e-3)
    assert found.paths == [str(broken / f"class{number // 12}" / f"{number:02}.png") for number in numbers]
    assert found.labels.tolist() == [number // 12 for number in numbers]
    assert {path.rsplit("/", 1)[1] for path in found.skipped} == {"10.png", "23.png"}
    assert all(reason for reason in found.skipped.values())


@pytest.mark.parametrize("loaded", [False, True])
def test_unreadable_files_can_keep_a_row_of_nan(broken, loaded):
    found = features(Brightness(), opened(broken, loaded), preprocessing=PREPROCESSING, on_broken="nan")
    assert found.features.isnan().flatten().nonzero().flatten().tolist() == [10, 23]
    assert len(found) == len(found.paths) == 24
    assert found.labels.tolist() == [0] * 12 + [1] * 12  # the folders are known without reading a file
    left = features(Brightness(), opened(broken, loaded), preprocessing=PREPROCESSING)
    readable = found.readable()
    assert torch.equal(readable.features, left.features) and readable.paths == left.paths
    assert torch.equal(readable.labels, left.labels) and readable.skipped == left.skipped


@pytest.mark.parametrize("loaded", [False, True])
def test_unreadable_items_have_no_label(loaded, monkeypatch):
    monkeypatch.setattr("superself.data.images.BROKEN_SHARE", 0.2)

    class Broken(Labelled):
        def __getitem__(self, place):
            if place == 3:
                raise OSError("bad sector")
            return super().__getitem__(place)

    images = open_images(Broken(pixels()))
    found = features(nn.Flatten(), images.load() if loaded else images, preprocessing=PREPROCESSING, on_broken="nan")
    assert found.labels.tolist() == [0, 1, 2, -1, 1, 2, 0, 1, 2, 0, 1] and found.paths is None
    assert found.skipped == {"item 3": "OSError: bad sector"}


def test_features_of_a_diverged_network_are_not_taken_for_unreadable_images():
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    nn.init.constant_(network[1].weight, math.nan)
    for on_broken in ("omit", "nan"):
        with pytest.raises(ValueError, match="features of 11 of 11 images are not finite"):
            features(network, pixels(), preprocessing=PREPROCESSING, on_broken=on_broken)


def test_an_unknown_treatment_of_unreadable_images_is_an_error():
    with pytest.raises(
        ValueError, match='on_broken="skip" is unknown; pass "omit" or "nan"'.replace('"skip"', "'skip'")
    ):
        features(backbone(), pixels(), on_broken="skip")


def test_random_items_are_the_same_at_every_call():
    data = Labelled(pixels(), noise=0.1)
    first = features(backbone(), data, preprocessing=PREPROCESSING).features
    torch.rand(3)
    assert torch.equal(first, features(backbone(), data, preprocessing=PREPROCESSING).features)


def test_features_are_float32_under_autocast_too():
    expected = features(backbone(), pixels(), preprocessing=PREPROCESSING).features
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(features(backbone(), pixels(), preprocessing=PREPROCESSING).features, expected)


def test_other_channels_are_an_error():
    with pytest.raises(ValueError, match="images have 1 channels and the backbone was made for 3; give images of 3"):
        features(backbone(), pixels(channels=1), preprocessing=PREPROCESSING)


def test_features_that_are_not_finite_are_an_error():
    class Overflowing(nn.Module):
        def forward(self, images):
            return images.flatten(1).pow(4)

    images = pixels().float() / 255
    images[[2, 5]] = 1e17
    with pytest.raises(ValueError, match="features of 2 of 11 images are not finite.*smaller learning rate"):
        features(Overflowing(), images, preprocessing=PREPROCESSING, device="cpu")


def test_no_images_are_an_error():
    with pytest.raises(ValueError, match="there are 0 images.*pass a data set"):
        features(backbone(), ImageSpec((3, 8, 8)), preprocessing=PREPROCESSING)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_features_are_the_same_from_another_device():
    here = features(backbone(), pixels(), preprocessing=PREPROCESSING).features
    there = features(backbone().to("cuda"), pixels(), preprocessing=PREPROCESSING).features
    assert there.device.type == "cpu"
    assert torch.allclose(here, there, atol=1e-3)
