"""Shortcut checks: what is left of a method or of features when a cue is taken out of the images."""

import math

import pytest
import torch
from torch import nn

from superself import JigsawNetSupervisor, PIRLSupervisor, RotateNetSupervisor
from superself.data import Batch, open_images
from superself.evaluation import (
    SERIES,
    Shortcuts,
    feature_shortcuts,
    held_out_loss,
    invariance_report,
    pretext_shortcuts,
)
from superself.evaluation.shortcuts import without_gaps
from superself.evaluation.subject import Subject

from cases import TinyBackbone, tiny_images


class Colour(nn.Module):
    """The difference of red and blue: nothing else is visible."""

    def forward(self, images):
        return torch.stack([images[:, 0] - images[:, 2], images[:, 2] - images[:, 1]], 1).mean((2, 3))


def supervisor_with_loss(loss_of):
    """A method whose loss is a function of the stored images, with chance level 2."""

    class Known(RotateNetSupervisor):
        chance_loss = 2.0

        def _forward(self, data):
            loss = loss_of(data.images.float() * (1 if data.images.dtype.is_floating_point else 1 / 255))
            self.note("accuracy", 1 - loss / 2)
            return loss

    return Known(tiny_images(8), backbone=TinyBackbone(), seed=0)


def chroma(images):
    return (images[:, 0] - images[:, 2]).abs().mean()


def detail(images):
    return (images[..., 1:] - images[..., :-1]).abs().mean()


def test_a_method_that_lives_on_colour_is_at_chance_without():
    supervisor = supervisor_with_loss(lambda images: 2 * (-200 * chroma(images)).exp())
    original, grey, low_pass = pretext_shortcuts(supervisor).rows
    assert original.loss < 0.1 and original.kept is None and original.accuracy == pytest.approx(1 - original.loss / 2)
    assert grey.loss == pytest.approx(2, abs=1e-3) and grey.kept == pytest.approx(0, abs=1e-3)
    assert "colour carries most of it" in grey.sentence
    assert low_pass.kept > 0.9 and "hardly needs fine detail" in low_pass.sentence


def test_a_method_that_lives_on_detail_is_at_chance_without():
    supervisor = supervisor_with_loss(lambda images: 2 * (-100 * detail(images)).exp())
    _, grey, low_pass = pretext_shortcuts(supervisor).rows
    assert grey.kept > 0.9 and "hardly needs colour" in grey.sentence
    assert low_pass.kept < 0.5 and "fine detail (texture, noise, compression) carries most" in low_pass.sentence


@pytest.mark.parametrize("loss", [1.97, 2.5])
def test_nothing_is_said_about_a_task_that_is_not_solved(loss):
    rows = pretext_shortcuts(supervisor_with_loss(lambda images: loss + 0.1 * chroma(images))).rows
    assert all(row.kept is None for row in rows)
    assert {row.sentence for row in rows[1:]} == {"says nothing: the originals are hardly better than chance"}


def test_losses_are_those_of_the_changed_images_and_the_table_shows_them():
    supervisor = RotateNetSupervisor(tiny_images(), backbone=TinyBackbone(), seed=0, augment=None)
    images = tiny_images(seed=1)
    grey = (images.float() / 255 * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    found = pretext_shortcuts(supervisor, open_images(images), count=16, batch_size=8)
    expected = held_out_loss(supervisor, open_images(grey.expand(-1, 3, -1, -1).contiguous()), batch_size=8)
    assert found.rows[1].loss == pytest.approx(expected.loss, rel=1e-3)
    assert found.rows[1].accuracy == expected.noted["accuracy"] and found.chance == math.log(4)
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["original", "grey", "low-pass"]
    assert f"{found.rows[0].loss:.4f}" in lines[2] and "chance level 1.386" in lines[0]


def test_images_without_colours_are_only_blurred():
    supervisor = RotateNetSupervisor(tiny_images(16, 1), backbone=TinyBackbone(1), seed=0)
    assert [row.change for row in pretext_shortcuts(supervisor).rows] == ["original", "low-pass"]
    assert list(feature_shortcuts(TinyBackbone(1), tiny_images(6, 1))) == ["low-pass"]


def positions():
    """Images (1, 3, 32, 32) whose pixels are their places: red is the row, green the column."""
    row, column = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    return torch.stack([row, column, 0 * row])[None].to(torch.uint8)


def test_tiles_without_gaps_touch_and_keep_their_size():
    supervisor = JigsawNetSupervisor(
        tiny_images(16, size=(32, 32)), backbone=TinyBackbone(), channel_jitter=0.1, seed=0
    )
    size, cut, jitter = supervisor.tile_size, supervisor.cut, supervisor.jitter
    assert jitter > 0
    with without_gaps(supervisor):
        tiles = 255 * supervisor.cut(positions(), supervisor.generator)[0]  # (4, 3, t, t)
        assert tiles.shape[-1] == size and supervisor.jitter == 0
        corners = tiles[:, :2, 0, 0].round().tolist()
        top = corners[0][0]
        assert corners == [[top, top], [top, top + size], [top + size, top], [top + size, top + size]]
        assert supervisor._tiles(positions()).shape[-1] == size
    assert supervisor.cut is cut and supervisor.jitter == jitter


@pytest.mark.parametrize("algorithm", [JigsawNetSupervisor, PIRLSupervisor])
def test_methods_that_cut_tiles_are_measured_without_gaps(algorithm):
    supervisor = algorithm(tiny_images(16, size=(24, 24)), backbone=TinyBackbone(), seed=0)
    state = supervisor.state_dict().keys()
    rows = pretext_shortcuts(supervisor, batch_size=8).rows
    assert rows[-1].change == "no gaps" and math.isfinite(rows[-1].loss) and rows[-1].sentence
    assert supervisor.state_dict().keys() == state
    assert pretext_shortcuts(supervisor, batch_size=8).rows == rows


def test_a_network_that_continues_lines_is_found():
    class Edges(JigsawNetSupervisor):
        """Its loss is the step between the first two tiles of each row: small where they touch."""

        chance_loss = 1.0

        def _forward(self, data: Batch):
            tiles = self.cut(data.images, self.generator)
            return (tiles[:, 0, :, :, -1] - tiles[:, 1, :, :, 0]).abs().mean()

    ramp = (torch.arange(32) * 8).to(torch.uint8).expand(8, 3, 32, 32).contiguous()
    row = pretext_shortcuts(Edges(ramp, backbone=TinyBackbone(), tile=0.5, seed=0)).rows[-1]
    assert row.change == "no gaps" and "continues lines across tiles" in row.sentence


def test_features_of_colour_do_not_survive_grey_and_survive_blur():
    images = tiny_images(12)
    kept = feature_shortcuts(Colour(), images)
    assert kept["grey"] < 0.5 and kept["low-pass"] > 0.95
    report = invariance_report(Colour(), images, series={"grey": SERIES["grey"]})
    assert kept["grey"] == pytest.approx(1 - report.moved["grey"][1.0])
    values = Shortcuts(images).evaluate(Subject(Colour()))
    assert values == {"shortcut_low_pass": kept["low-pass"], "shortcut_grey": kept["grey"]}
