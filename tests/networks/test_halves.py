import copy

import pytest
import torch
from skimage.color import rgb2lab
from torch import nn

from superself import compare
from superself.networks import (
    EfficientFeatures,
    HalvesNet,
    LabHalves,
    PerHalf,
    build_halves,
    describe,
    fresh_copy,
    without_normalization,
)

from cases import TinyBackbone, tiny_images
from tensors import images_of


def tiny_halves(use="both"):
    return LabHalves(TinyBackbone(1), TinyBackbone(2), use)


def test_each_half_sees_its_own_channels_of_lab_scaled():
    images = images_of(3)
    lab = torch.from_numpy(rgb2lab(images.double().numpy(), channel_axis=1)).float()
    lightness, colour = tiny_halves().split(images)
    assert torch.allclose(lightness * 25 + 50, lab[:, :1], atol=1e-3)
    assert torch.allclose(colour * 15, lab[:, 1:], atol=1e-2)


def test_features_of_both_halves_are_joined_the_lightness_first():
    halves, images = tiny_halves().eval(), images_of(4)
    lightness, colour = halves.features(images)
    assert torch.equal(halves(images), torch.cat([lightness, colour], 1))
    only = LabHalves(halves.lightness, halves.colour, "L").eval()
    assert torch.equal(only(images), lightness)


def test_the_lightness_alone_is_that_of_the_grey_image():
    halves, images = tiny_halves("L").eval(), images_of(4)
    luminance = torch.einsum("c,bchw->bhw", torch.tensor([0.212671, 0.715160, 0.072169]), linear(images))
    grey = undo_linear(luminance)[:, None].expand(-1, 3, -1, -1)
    assert torch.allclose(halves(images), halves(grey), atol=1e-3)


def linear(images):
    return torch.where(images > 0.04045, ((images + 0.055) / 1.055) ** 2.4, images / 12.92)


def undo_linear(values):
    return torch.where(values > 0.0031308, 1.055 * values ** (1 / 2.4) - 0.055, 12.92 * values)


def test_no_half_gets_a_gradient_from_the_other():
    halves = tiny_halves()
    net = HalvesNet(halves, PerHalf(nn.Identity(), nn.Identity()))
    first, second = net(images_of(4))
    first.sum().backward(retain_graph=True)
    assert all(p.grad is None for p in halves.colour.parameters())
    halves.zero_grad()
    second.sum().backward()
    assert all(p.grad is None for p in halves.lightness.parameters())


def test_lab_stays_in_float32_under_mixed_precision():
    images = images_of(2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (
            torch.equal(LabHalves.lab(images), LabHalves.lab(images)) and LabHalves.lab(images).dtype == torch.float32
        )
        mixed = LabHalves.lab(images)
    assert torch.equal(mixed, LabHalves.lab(images))


@pytest.mark.parametrize("backbone", ["resnet18", ("resnet18", "mobilenet_v3_small")])
def test_names_are_built_for_one_and_two_channels_and_fresh_ones_again(backbone):
    halves = build_halves(backbone, (3, 32, 24))
    widths = [next(half.parameters()).shape[1] for half in (halves.lightness, halves.colour)]
    assert widths == [1, 2] and describe(halves).startswith("L: resnet18 (torchvision), 1 channel, ")
    assert describe(build_halves(halves, (3, 32, 24), "L")).endswith("; features of L only")
    fresh = fresh_copy(halves)
    assert type(fresh) is LabHalves and fresh.use == "L"
    for part in ("lightness", "colour"):
        first, second = (next(getattr(each, part).parameters()) for each in (fresh, halves))
        assert first.shape == second.shape and not torch.equal(first, second)


def test_predictors_get_the_maps_of_both_halves_if_asked():
    halves, images = LabHalves(TinyBackbone(1), EfficientFeatures(2)).eval(), images_of(2, 32, 32)
    lightness, colour = HalvesNet(halves, PerHalf(nn.Identity(), nn.Identity()), maps=True)(images)
    assert lightness.shape == (2, 16, 8, 8) and colour.shape == (2, 64, 7, 7)
    assert torch.allclose(lightness.mean((2, 3)), halves.features(images)[0], atol=1e-6)


def test_none_is_two_default_backbones():
    assert build_halves(None, (3, 32, 32)).eval()(images_of(2, 32, 32)).shape == (2, 2 * 3136)


def test_a_pair_of_modules_and_ready_halves_are_taken_as_they_are():
    pair = TinyBackbone(1), TinyBackbone(2)
    halves = build_halves(pair, (3, 16, 16))
    assert (halves.lightness, halves.colour) == pair
    assert build_halves(halves, (3, 16, 16), "L") is halves and halves.use == "L"
    assert build_halves(halves, (3, 16, 16)).use == "L"


@pytest.mark.parametrize("channels", [1, 4])
def test_images_that_are_not_rgb_are_refused(channels):
    with pytest.raises(ValueError, match=f"the images have {channels} channels, but Lab needs the 3 of RGB"):
        build_halves(None, (channels, 32, 32))


def test_a_single_module_is_refused():
    with pytest.raises(
        TypeError, match="is not a pair of halves; pass .a module for 1 channel, a module for 2 channels"
    ):
        build_halves(TinyBackbone(), (3, 32, 32))
    with pytest.raises(TypeError, match="not a pair of halves"):
        build_halves(("resnet18",), (3, 32, 32))


def test_other_features_are_refused():
    with pytest.raises(ValueError, match="features='ab' is unknown; pass 'both' or 'L'"):
        tiny_halves("ab")
    with pytest.raises(ValueError, match="features='l'"):
        build_halves(tiny_halves(), (3, 16, 16), "l")


def test_a_normalisation_is_refused():
    with pytest.raises(
        ValueError, match=r"normalize=\(0.5, 0.2\) changes the colours that Lab is computed from; leave it out"
    ):
        without_normalization({"normalize": (0.5, 0.2)})
    assert without_normalization({"seed": 1, "normalize": None}) == {"seed": 1, "normalize": (0.0, 1.0)}


def test_is_compared_with_freshly_initialised_halves():
    images = [(image, k % 2) for k, image in enumerate(tiny_images(24))]
    halves = build_halves("mobilenet_v3_small", (3, 16, 16))
    found = compare(halves, images, images, print=False)
    assert set(found.rows) == {"random initialised", "trained"}
    own = compare(copy.deepcopy(tiny_halves()), images, images, print=False)  # by reset_parameters of its layers
    assert "freshly initialised" in own.text
