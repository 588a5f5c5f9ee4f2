from __future__ import annotations

import pytest
import torch

from superself.augment import (
    JPEG,
    ColorJitter,
    GaussianBlur,
    GaussianNoise,
    RandomChannelMean,
    RandomErasing,
    RandomHorizontalFlip,
    RandomPadAndCrop,
    RandomRotation90,
    RandomSobel,
    RandomVerticalFlip,
    Sobel,
    recipe,
    show_views,
)
from superself.augment.patchwork import DEFAULTS, STEPS, numbered_view

from tensors import seeded

README = {
    "max_brightness_delta": 0.3, "contrast_min": 0.4, "contrast_max": 1.4, "max_hue_delta": 0.2, "max_saturation_delta": 0.5,
    "left_right_flip": True, "up_down_flip": True, "rot90": True, "zoom_scale": 0.2, "select_prob": 0.5,
}  # fmt: skip
DOCS = {
    "brightness_delta": 0.2, "contrast_delta": 0.4, "hue_delta": 0.1, "gaussian_blur": 0.25, "drop_color": 0.2,
    "gaussian_noise": 0.2, "sobel_prob": 0.1, "saturation_delta": 0.1, "flip_left_right": True, "flip_up_down": True,
    "rot90": True, "zoom_scale": 0.4, "mask": 0.25,
}  # fmt: skip
PLAIN = {  # a value that turns a step on alone
    **dict.fromkeys(STEPS, 1.0), "flip_left_right": True, "flip_up_down": True, "rot90": True, "zoom_scale": 0.3,
    "center_zoom_scale": 0.5, "brightness_delta": 0.5, "hue_delta": 0.3, "shear": 0.3,
}  # fmt: skip
del PLAIN["contrast"]


def steps(transform) -> dict:
    return {type(step): step for step in transform.transforms[1:]}


def images(n=64, size=32, channels=3):
    """Smooth images that are different at each place, so that every step changes them."""
    ramp = torch.linspace(0.1, 0.9, size)
    base = torch.stack([ramp.expand(size, size), ramp.expand(size, size).T, ramp.expand(size, size) * ramp[:, None]])
    waves = 0.05 * torch.rand(n, channels, size, size, generator=seeded())
    return base[torch.arange(channels) % 3] * 0.9 + waves


# ---- which steps a dictionary makes ------------------------------------------------------------------------------------


def test_both_spellings_give_the_same_views():
    present = {
        "brightness_delta": 0.3, "contrast_min": 0.4, "contrast_max": 1.4, "hue_delta": 0.2, "saturation_delta": 0.5,
        "flip_left_right": True, "flip_up_down": True, "rot90": True, "zoom_scale": 0.2, "select_prob": 0.5,
    }  # fmt: skip
    views = [recipe(given, 32)(images(), seeded()) for given in (README, present, {"name": "patchwork", **README})]
    assert torch.equal(views[0], views[1]) and torch.equal(views[0], views[2])
    assert [type(step) for step in recipe(README, 32).transforms] == [type(s) for s in recipe(present, 32).transforms]


def test_given_steps_are_on_in_the_documented_order_and_the_rest_off():
    transform = recipe(DOCS, 64)
    names = [type(step) for step in transform.transforms[1:]]
    jitters = [ColorJitter] * 4
    assert names == [
        RandomHorizontalFlip, RandomVerticalFlip, RandomRotation90, RandomPadAndCrop, *jitters, GaussianBlur,
        GaussianNoise, RandomChannelMean, RandomSobel, RandomErasing,
    ]  # fmt: skip
    brightness, contrast, saturation, hue = (step for step in transform.transforms if type(step) is ColorJitter)
    assert brightness.factors[0] == (0.8, 1.2) and contrast.factors[1] == (0.6, 1.4)
    assert saturation.factors[2] == (0.9, 1.1) and hue.hue == (-0.1, 0.1)
    assert steps(transform)[GaussianBlur].p == 0.25 and steps(transform)[RandomSobel].p == 0.1
    assert len(recipe({"hue_delta": 0.1, "rot90": False, "mask": 0, "zoom_scale": None}, 64).transforms) == 2


def test_true_and_false_keep_their_meaning_and_the_name_gives_the_defaults():
    assert RandomPadAndCrop not in steps(recipe(True, 32, default="simclr"))
    assert len(recipe(False, 32).transforms) == 1
    by_name = recipe("patchwork", 32)
    assert [type(s) for s in by_name.transforms] == [type(s) for s in numbered_view(32, **DEFAULTS).transforms]
    assert steps(by_name)[RandomPadAndCrop].scale == 0.2 and steps(by_name)[RandomErasing].p == 0.2
    assert len(recipe({"brightness_delta": 0.2}, 32, views=2)(images(), seeded())) == 2


def test_one_bound_of_the_contrast_leaves_the_other_at_its_default():
    assert steps(recipe({"contrast_min": 0.8}, 32))[ColorJitter].factors[1] == (0.8, 1.4)
    assert steps(recipe({"contrast_max": 1.1}, 32))[ColorJitter].factors[1] == (0.4, 1.1)


@pytest.mark.parametrize("name", PLAIN)
def test_each_step_alone_changes_views_and_keeps_their_range(name):
    before = images()
    views = recipe({name: PLAIN[name]}, 32)(before, seeded())
    changed = (views - before).abs().flatten(1).amax(1) > 1e-3
    share = {"flip_left_right": 0.5, "flip_up_down": 0.5, "rot90": 0.75}.get(name, 1.0)
    assert abs(changed.float().mean() - share) < 0.2
    assert views.shape == before.shape and views.min() >= -1e-5 and views.max() <= 1 + 1e-5


@pytest.mark.parametrize(
    "name", ["rot90", "zoom_scale", "shear", "jitter", "brightness_delta", "hue_delta", "center_zoom_scale"]
)
def test_select_prob_is_the_probability_of_a_step(name):
    before = images(400, 16)
    views = recipe({name: PLAIN[name], "select_prob": 0.25}, 16)(before, seeded())
    changed = (views - before).abs().flatten(1).amax(1) > 1e-4
    assert abs(changed.float().mean() - 0.25 * (0.75 if name == "rot90" else 1)) < 0.07


def test_select_prob_leaves_flips_and_steps_with_their_own_probability():
    transform = recipe({"flip_left_right": True, "mask": 0.7, "select_prob": 0.1}, 16)
    assert steps(transform)[RandomHorizontalFlip].p == 0.5 and steps(transform)[RandomErasing].p == 0.7


def test_probabilities_of_jpeg_are_under_both_names():
    assert steps(recipe({"jpeg": 0.3}, 32))[JPEG].p == steps(recipe({"jpeg_degrade": 0.3}, 32))[JPEG].p == 0.3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_brightnes_delta": 0.3}, "'max_brightnes_delta' is not a parameter.*did you mean 'max_brightness_delta'"),
        ({"rot90": True, "zzz": 1}, "'zzz' is not a parameter.*the names are flip_left_right"),
        ({"hue_delta": 0.1, "max_hue_delta": 0.1}, "'hue_delta' and 'max_hue_delta' are two names"),
        ({"mask": 1.5}, r"mask must be a number in \[0, 1\], got 1.5"),
        ({"jitter": -1.0}, "jitter"),
        ({"select_prob": 2}, "select_prob"),
        ({"zoom_scale": 0.7}, "scale=0.7 can crop everything"),
        ({"name": "patchwork", "rot91": True}, "'rot91' is not a parameter.*did you mean 'rot90'"),
        ({"strength": 1}, r'augment=\{\'strength\': 1\} has no "name"; the recipes are'),
    ],
    ids=str,
)
def test_unknown_names_and_wrong_numbers_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        recipe(given, 32)


def test_rotations_need_square_views_and_are_no_default_of_others():
    with pytest.raises(ValueError, match="rot90 needs square views, and these have 20 x 30"):
        recipe({"rot90": True}, (20, 30))
    assert RandomRotation90 not in steps(recipe("patchwork", (20, 30)))
    assert recipe("patchwork", (20, 30))(images(), seeded()).shape == (64, 3, 20, 30)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_all_steps_take_any_number_of_channels(channels):
    everything = {
        name: value for name, value in PLAIN.items() if channels == 3 or name not in ("hue_delta", "saturation_delta")
    }
    everything = {**everything, "jitter": 1.0 if channels == 3 else 0}
    assert recipe(everything, 24)(images(4, 32, channels), seeded()).shape == (4, channels, 24, 24)


def test_masks_move_with_the_geometric_steps():
    squares = torch.zeros(32, 3, 32, 32)
    squares[:, :, 8:24, 4:16] = 1
    views, masks = recipe({"flip_left_right": True, "rot90": True, "zoom_scale": 0.3, "shear": 0.2}, 32)(
        squares, seeded(), masks=squares[:, 0].bool()
    )
    sure = (views[:, 0] < 0.05) | (views[:, 0] > 0.95)
    assert ((views[:, 0] > 0.5) == masks)[sure].float().mean() > 0.998


def test_a_picture_of_the_dictionary_can_be_written(tmp_path):
    assert show_views((images(4) * 255).byte(), DOCS, tmp_path / "views.png", count=3, views=5).stat().st_size > 1000


# ---- new steps ---------------------------------------------------------------------------------------------------------


def test_zoom_equals_padding_and_cropping_by_the_same_numbers():
    """Pads of 0.25 of 32 = 8 pixels on the left and 0 elsewhere, then 0.25 of the 40 = 10 cut from the right: 30 wide."""
    transform = RandomPadAndCrop(0.25)
    numbers = torch.tensor([[1.0, 0, 0, 0, 0, 0, 1, 0]])
    before = images(1)
    view = transform.run(before.clone(), numbers)
    padded = torch.nn.functional.pad(before, (8, 0, 0, 0))[:, :, :, :30]
    expected = torch.nn.functional.interpolate(padded, (32, 32), mode="bilinear")
    assert (view - expected)[:, :, :, 10:].abs().max() < 1e-4  # next to the border, edges are treated in another way
    assert (view[:, :, :, :8] == 0).all()


def test_zoom_cuts_fractions_of_the_padded_image_from_both_sides():
    """Pads of 8 pixels on the left and the top of 32, then 0.25 of the 40 = 10 cut from there: 2 pixels of the image are lost."""
    numbers = torch.tensor([[1.0, 1, 0, 0, 1, 1, 0, 0]])
    before = images(1)
    view = RandomPadAndCrop(0.25).run(before.clone(), numbers)
    expected = torch.nn.functional.interpolate(before[:, :, 2:, 2:], (32, 32), mode="bilinear")
    assert (view - expected)[:, :, 2:-2, 2:-2].abs().max() < 1e-4


def test_zoom_shows_borders_and_closer_views_and_leaves_others_alone():
    ones = torch.ones(300, 1, 32, 32)
    bright = RandomPadAndCrop(0.4)(ones, seeded()).mean((1, 2, 3))
    assert bright.min() < 0.75 and (bright > 0.999).any()
    untouched = RandomPadAndCrop(0.4, p=0.3)(images(300), seeded()) == images(300)
    assert abs(untouched.flatten(1).all(1).float().mean() - 0.7) < 0.08
    for scale in (-0.1, 0.5):
        with pytest.raises(ValueError, match="can crop everything"):
            RandomPadAndCrop(scale)


def test_rotations_with_a_probability_are_exact():
    before = images(400)
    views = RandomRotation90(0.4)(before, seeded())
    turned = [torch.rot90(before, k, (2, 3)) for k in range(4)]
    matches = torch.stack([(views - t).abs().flatten(1).amax(1) < 1e-5 for t in turned])
    assert matches.any(0).all()
    assert matches.float().mean(1).tolist() == pytest.approx([0.7, 0.1, 0.1, 0.1], abs=0.06)


def test_sobel_keeps_the_channels_and_stretches_the_mean_of_both_derivatives():
    before = images(5, channels=3)
    views = RandomSobel(1.0)(before, seeded())
    assert views.shape == before.shape and (views == views[:, :1]).all()
    assert torch.allclose(views.amax((1, 2, 3)), torch.ones(5), atol=1e-5) and views.amin() == 0
    grey = before[:, :1]
    edges = Sobel()(grey, seeded()).mean(1, keepdim=True)
    low, high = edges.amin((2, 3), keepdim=True), edges.amax((2, 3), keepdim=True)
    assert torch.allclose(RandomSobel(1.0)(grey, seeded()), (edges - low) / (high - low), atol=1e-5)
    assert (RandomSobel(1.0)(torch.full((2, 3, 8, 8), 0.5), seeded()) == 0).all()


def test_drop_color_takes_the_mean_of_any_channels():
    before = images(200, 8, 4)
    views = RandomChannelMean(0.5)(before, seeded())
    grey = (views == views[:, :1]).flatten(1).all(1)
    assert abs(grey.float().mean() - 0.5) < 0.1
    assert torch.allclose(views[grey][:, 2], before[grey].mean(1), atol=1e-6) and torch.equal(
        views[~grey], before[~grey]
    )


def test_bounds_of_the_contrast_may_be_zero_and_one_and_must_be_in_order():
    assert steps(recipe({"contrast_min": 0.0, "contrast_max": 0.8}, 32))[ColorJitter].factors[1] == (0.0, 0.8)
    assert steps(recipe({"contrast_max": 1.0}, 32))[ColorJitter].factors[1] == (0.4, 1.0)
    with pytest.raises(ValueError, match="contrast_min=2 is larger than contrast_max=1.4"):
        recipe({"contrast_min": 2}, 32)


@pytest.mark.parametrize("scale", [0, 1.5])
def test_a_zoom_shows_a_part_of_the_image(scale):
    with pytest.raises(ValueError, match=r"center_zoom_scale must be a number in \(0, 1\], got"):
        recipe({"center_zoom_scale": scale}, 32)


def test_two_names_of_one_parameter_are_named_as_they_were_given():
    with pytest.raises(ValueError, match="'jpeg' and 'jpeg_degrade' are two names of the same parameter"):
        recipe({"jpeg": 0.5, "jpeg_degrade": 0.5}, 32)
