"""suggest: rules over the methods that exist, times that are measured, lines that run."""

import json
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from superself import Suggestion, create, suggest, suggestions
from superself.algorithms import ALGORITHMS
from superself.data import open_images
from superself.suggestions import Facts, choose, look_at, time_steps

from cases import TinyBackbone, tiny_images

PHOTOS = Facts(50_000, (3, 32, 32), is_grey=False, alike=0.0, upright=True, colour_matters=False)


def names(facts, count=3, steps=1000, **given):
    return [name for name, _, _ in choose(facts, count, steps, **given)]


# ---- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["simclr", "byol", "rotatenet"]),
        ({"alike": 0.5}, ["byol", "rotatenet", "simclr"]),
        ({"count": 500}, ["exemplarnet", "simclr", "byol"]),
        ({"count": 100}, ["exemplarnet", "moco", "byol"]),  # batches of 32
        ({"count": 60}, ["exemplarnet", "moco", "rotatenet"]),  # batches of 16
        ({"upright": False}, ["simclr", "byol", "cmc"]),
        ({"upright": False, "is_grey": True}, ["simclr", "byol", "context_encoder"]),
        ({"upright": False, "shape": (4, 32, 32)}, ["simclr", "byol", "context_encoder"]),
        ({"colour_matters": True}, ["simclr", "byol", "cmc"]),
        ({"colour_matters": True, "count": 500}, ["cmc", "simclr", "byol"]),
    ],
)
def test_facts_decide_which_methods_come_first(changes, expected):
    assert names(replace(PHOTOS, **changes)) == expected


def test_every_suggestion_is_another_method_that_exists():
    everything = names(PHOTOS, 99)
    assert everything[:5] == ["simclr", "byol", "rotatenet", "moco", "vicreg"]
    assert len(everything) == len(set(everything)) and set(everything) <= set(ALGORITHMS)


def test_a_single_module_is_not_suggested_for_methods_with_two_backbones():
    assert "cmc" in names(replace(PHOTOS, upright=False), 9)
    assert "cmc" not in names(replace(PHOTOS, upright=False), 9, is_module=True)


def arguments_of(method, facts, steps=1000):
    return next(arguments for name, arguments, _ in choose(facts, 99, steps) if name == method)


def test_arguments_follow_the_data_and_the_length_of_the_run():
    assert arguments_of("moco", PHOTOS) == {"queue_size": 4096, "momentum": 0.99}
    assert arguments_of("moco", replace(PHOTOS, count=1000), steps=10**5) == {"queue_size": 256}
    assert arguments_of("byol", PHOTOS, steps=10**5) == {}
    colours = replace(PHOTOS, colour_matters=True)
    assert arguments_of("byol", colours) == {"momentum": 0.99, "augment": "resized-crop-flip"}
    assert arguments_of("cmc", colours) == {"contrast": "batch"}


@pytest.mark.parametrize(("count", "batch_size"), [(8, 4), (40, 16), (100, 32), (256, 64), (10**6, 64)])
def test_batches_are_a_power_of_two_and_at_most_half_of_the_images(count, batch_size):
    assert replace(PHOTOS, count=count).batch_size == batch_size


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("method", ["moco", "byol", "rotatenet", "exemplarnet", "context_encoder", "cmc"])
def test_every_choice_can_be_made_of_images_of_its_kind(method, channels):
    facts = Facts(64, (channels, 16, 16), channels == 1, 0.0, method != "cmc", colour_matters=method == "cmc")
    chosen = {name: arguments for name, arguments, _ in choose(facts, 99, 100)}
    if method == "cmc" and channels == 1:
        assert method not in chosen
    else:
        backbone = "mobilenet_v3_small" if method == "cmc" else TinyBackbone(channels)
        assert create(method, tiny_images(64, channels), backbone=backbone, **chosen[method]).model is not None


# ---- what is seen of the images --------------------------------------------------------------------------------------


def different_images(n, channels=3):
    return torch.randint(0, 256, (n, channels, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_colours_and_near_duplicates_are_found():
    facts = look_at(open_images(different_images(40)))
    assert (facts.count, facts.shape, facts.is_grey, facts.alike) == (40, (3, 16, 16), False, 0.0)
    doubled = different_images(40)
    doubled[20:30] = doubled[:10] ^ 1  # nearly the same
    assert look_at(open_images(doubled)).alike == pytest.approx(0.5)
    grey = different_images(40, 1).expand(-1, 3, -1, -1)
    assert look_at(open_images(grey)).is_grey and look_at(open_images(different_images(9, 1))).is_grey
    assert not look_at(open_images(different_images(9, 4))).is_grey


def test_a_stand_in_for_a_broken_file_is_not_a_duplicate():
    for i, image in enumerate(different_images(24)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(f"{i:02}.png")
    Path("07.png").write_bytes(b"broken")
    assert look_at(open_images(".")).alike == 0.0


# ---- suggestions -----------------------------------------------------------------------------------------------------


@pytest.fixture
def a_step_takes_two_seconds(monkeypatch):
    monkeypatch.setattr(suggestions, "time_steps", lambda *given: 2.0)


@pytest.mark.usefixtures("a_step_takes_two_seconds")
def test_the_time_is_that_of_all_steps_and_minutes_are_turned_into_epochs():
    images = different_images(1200)
    found = suggest(images, epochs=10, print=False)
    assert found[0].steps == 190 and found[0].minutes == pytest.approx(190 * 2 / 60)  # 19 batches of 64
    assert [s.settings["epochs"] for s in suggest(images, minutes=20, print=False)] == [31] * 3  # 1200 s / 38 s
    assert [s.settings["epochs"] for s in suggest(images, minutes=0.1, print=False)] == [1] * 3
    assert suggest(images, print=False)[0].settings["epochs"] == 334  # 400,000 images


def test_without_measuring_no_time_is_given(capsys):
    found = suggest(different_images(40), measure=False, count=2, backbone="resnet50")
    assert [s.minutes for s in found] == [None, None] and all(s.arguments["backbone"] == "resnet50" for s in found)
    printed = capsys.readouterr().out
    assert printed.strip() == str(found) and "about" not in printed
    assert "40 images, 16 x 16 pixels, colour" in printed and "1. exemplarnet: 400 epochs; treats each" in printed


@pytest.mark.usefixtures("a_step_takes_two_seconds")
def test_the_lines_run_as_printed(capsys):
    Path("my_images").mkdir()
    for i, image in enumerate(different_images(8)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(f"my_images/{i}.png")
    found = suggest("my_images", "mobilenet_v3_small", epochs=1, count=2, image_size=16)
    printed = capsys.readouterr().out
    for suggestion in found:
        assert all(f"    {line}\n" in printed + "\n" for line in suggestion.lines.splitlines())
        names = {"create": create}
        exec(suggestion.lines, names)
        assert names["supervisor"].step == suggestion.steps == 2
        assert Path(f"store/{suggestion.method}.pt").exists()
    assert "create('exemplarnet', 'my_images', backbone='mobilenet_v3_small', image_size=16)" in printed


@pytest.mark.usefixtures("a_step_takes_two_seconds")
def test_a_suggestion_makes_its_supervisor():
    images, backbone = different_images(12), TinyBackbone()
    suggestion = suggest(images, backbone, count=2, print=False)[1]
    assert isinstance(suggestion, Suggestion) and suggestion.method == "moco"
    supervisor = suggestion.create(images, temperature=0.5)
    assert supervisor.get_backbone() is backbone and (supervisor.queue_size, supervisor.temperature) == (4, 0.5)
    assert "create('moco', dataset, queue_size=4, momentum=0.99, backbone=backbone)" in suggestion.lines


def test_measuring_is_real_and_leaves_nothing_behind(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    backbone = TinyBackbone()
    weights = [p.clone() for p in backbone.parameters()]
    found = suggest(different_images(40), backbone, print=False)
    assert len(found) == 3 and all(0 < s.seconds_per_step < 20 for s in found)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[2]
    assert np.random.get_state()[1].tolist() == before[1]
    assert all(torch.equal(a, b) for a, b in zip(weights, backbone.parameters(), strict=True))
    assert not any((tmp_path / "temporary").iterdir()) and not Path("store").exists()
    assert capsys.readouterr().out == ""


def test_a_slow_step_is_measured_with_few_images_and_scaled(monkeypatch):
    asked = []

    def timed(method, images, batch_size, arguments, device):
        asked.append(batch_size)
        return 0.5 if slow else 0.1

    monkeypatch.setattr(suggestions, "_time_run", timed)
    slow = True
    assert time_steps("byol", None, 64, {}) == 2.0 and asked == [16]
    slow = False
    assert time_steps("byol", None, 64, {}) == 0.1 and asked == [16, 16, 64]
    assert time_steps("byol", None, 8, {}) == 0.1 and asked[3:] == [8]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset": torch.zeros(7, 3, 8, 8)}, "there are 7 images, too few to suggest a method; pass at least 8"),
        ({"dataset": None}, "there are 0 images"),
        ({"count": 0}, "count must be an integer of at least 1, got 0"),
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"minutes": 0}, "minutes must be a number above 0, got 0"),
        ({"minutes": 5, "epochs": 3}, "minutes= is turned into epochs by measuring"),
        ({"minutes": 5, "measure": False}, "minutes= is turned into epochs by measuring"),
    ],
)
def test_wrong_arguments_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        suggest(**{"dataset": tiny_images(), **given})


def test_settings_are_plain_values():
    found = suggest(different_images(40), measure=False, print=False)
    assert json.loads(json.dumps([s.settings for s in found])) == [s.settings for s in found]


def test_options_of_reading_reach_the_images_once():
    raw = different_images(24).float() * 100
    found = suggest(raw, "resnet9:width=0.125", count=1, epochs=1, norm=25500.0, print=False)
    assert found[0].minutes is not None and found[0].arguments["norm"] == 25500.0
