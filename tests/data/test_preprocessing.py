"""Preprocessing: from stored pixels to the input of the network."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch

from superself.data import Preprocessing, open_images, to_float


def test_to_float_scales_by_the_range_of_the_type():
    for dtype, full in ((torch.uint8, 255), (torch.uint16, 65535), (torch.float32, 1)):
        assert to_float(torch.tensor([0, full]).to(dtype)).tolist() == [0.0, 1.0]


def test_normalised_data_set_has_mean_zero_and_std_one(noise):
    pixels = np.stack([noise() for _ in range(20)]) // [1, 2, 4]
    images = open_images(pixels.astype(np.uint8))
    preprocessing = Preprocessing.of(images)
    seen = preprocessing(images.batch(range(20)).images)
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)
    np.testing.assert_allclose(preprocessing.mean, pixels.mean((0, 1, 2)) / 255, rtol=1e-5)


def test_given_mean_and_std_are_used():
    images = open_images(torch.zeros(4, 2, 8, 8, dtype=torch.uint16))
    preprocessing = Preprocessing.of(images, (0.5, [0.25, 0.5]))
    assert preprocessing == Preprocessing((2, 8, 8), "uint16", (0.5, 0.5), (0.25, 0.5))
    assert preprocessing(images.batch([0]).images)[0, :, 0, 0].tolist() == [-2.0, -1.0]


def test_constant_channel_is_not_divided_by_zero():
    preprocessing = Preprocessing.of(open_images(torch.ones(4, 1, 8, 8)))
    assert preprocessing(torch.ones(1, 1, 8, 8)).abs().max() == 0


def test_survives_the_checkpoint():
    preprocessing = Preprocessing((3, 8, 9), "uint8", (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


def test_unfitting_values_are_refused():
    with pytest.raises(ValueError, match="2 means and 3 stds for images of 3 channels"):
        Preprocessing((3, 8, 8), "uint8", (0.0, 0.0), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="larger than 0"):
        Preprocessing((1, 8, 8), "uint8", (0.0,), (0.0,))
    with pytest.raises(ValueError, match="the batch has 3 channels, the preprocessing was made for 1"):
        Preprocessing((1, 8, 8), "uint8", (0.0,), (1.0,))(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize(("scale", "offset", "warns"), [(1, 0, False), (255, 0, True), (4, -2, True)])
def test_floats_outside_of_zero_to_one_are_pointed_out(scale, offset, warns):
    pixels = np.random.default_rng(0).random((6, 8, 8, 3), dtype=np.float32) * scale + offset
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Preprocessing.of(open_images(pixels))
    assert any("divide them by their largest possible value" in str(w.message) for w in caught) == warns


def test_integers_are_refused_where_the_floats_had_another_range(noise):
    pixels = np.stack([noise() for _ in range(6)])
    with pytest.warns(UserWarning, match="floating-point numbers from"):
        of_floats = Preprocessing.of(open_images(pixels.astype(np.float32)))
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    with pytest.raises(
        ValueError, match=r"the batch is uint8, .*measured on float32 images with means .*not in \[0, 1\]"
    ):
        of_floats(batch)
    assert of_floats(batch.float()).mean().abs() < 1e-4
    of_unit_floats = Preprocessing.of(open_images(pixels.astype(np.float32) / 255))
    torch.testing.assert_close(of_unit_floats(batch), of_unit_floats(batch / 255))


def test_sobel_is_the_convolution_of_the_mean_of_the_channels():
    preprocessing = Preprocessing((4, 8, 9), "float32", (0.5, 0.4, 0.3, 0.2), (0.2, 0.3, 0.4, 0.5), sobel=True)
    images = torch.rand(2, 4, 8, 9)
    seen = preprocessing(images)
    assert preprocessing.input_shape == (3, 8, 9) and seen.shape == (2, 3, 8, 9)
    grey = (
        (images - torch.tensor(preprocessing.mean).view(-1, 1, 1)) / torch.tensor(preprocessing.std).view(-1, 1, 1)
    ).mean(1)
    padded = torch.nn.functional.pad(grey[:, None], (1, 1, 1, 1), mode="replicate")
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    kernels = torch.stack([kernel, kernel.T])[:, None]
    torch.testing.assert_close(seen[:, :2], torch.nn.functional.conv2d(padded, kernels), atol=1e-5, rtol=1e-5)
    assert not seen[:, 2].any()
    with pytest.raises(ValueError, match="sobel=True cannot be undone"):
        preprocessing.undo(seen)


def test_sobel_of_a_ramp_is_its_slope_times_eight():
    ramp = torch.arange(6.0).expand(1, 1, 6, 6) / 10  # rises by 0.1 a pixel along x; (1 + 2 + 1) * 2 = 8
    seen = Preprocessing((1, 6, 6), "float32", (0.0,), (0.5,), sobel=True)(ramp)
    assert seen[0, :, 2, 2].tolist() == pytest.approx([8 * 0.1 / 0.5, 0, 0])
