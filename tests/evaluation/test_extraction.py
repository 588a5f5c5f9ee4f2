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


def test_a_broken_file_brings_feature_and_label_of_its_stand_in(tmp_path):
    for place in range(24):
        folder = tmp_path / f"class{place % 2}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 10 * place, dtype=np.uint8)).save(folder / f"{place:02}.png")
    (tmp_path / "class0" / "22.png").write_bytes(b"")  # the last of its class
    found = features(nn.Flatten(), f"imagefolder:{tmp_path}", batch_size=5, preprocessing=PREPROCESSING)
    assert len(found.features) == 24
    assert torch.equal(found.features[11], found.features[12])
    assert found.labels.tolist() == [0] * 11 + [1] * 13


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
    images = pixels().float() / 255
    images[[2, 5]] = math.nan
    with pytest.raises(ValueError, match="features of 2 of 11 images are not finite.*smaller learning rate"):
        features(backbone(), images, preprocessing=PREPROCESSING)


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
