from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from superself.basics import drawing
from superself.basics.drawing import MARGIN, Sheet, find_font, heading_height, shorten, text_width, wrap


def ink(sheet):
    """The first and last column, and row, with anything drawn."""
    rows, columns = np.nonzero((np.asarray(sheet.image) < 200).any(2))
    return columns.min(), columns.max(), rows.min(), rows.max()


def test_texts_that_are_too_wide_are_shortened_or_wrapped():
    assert shorten("cat", 200) == "cat" and shorten("cat", 1) == ""
    short = shorten("a very long name of a class", 80)
    assert short.endswith("…") and text_width(short) <= 80 < text_width("a very long name of a class")
    lines = wrap("the quick brown fox jumps", 90)
    assert " ".join(lines) == "the quick brown fox jumps" and len(lines) > 1
    assert all(text_width(line) <= 90 for line in lines)
    assert wrap("", 90) == [] and wrap("incomprehensibilities", 60)[0].endswith("…")


def test_anchors_place_the_text():
    for anchor, place in {"la": "right", "ra": "left"}.items():
        sheet = Sheet(400, 60)
        sheet.text(200, 20, "some text", anchor=anchor)
        left, right, *_ = ink(sheet)
        assert (left >= 199 if place == "right" else right <= 201) and right - left == pytest.approx(
            text_width("some text"), abs=4
        )


def test_text_upwards_is_higher_than_wide_and_ends_where_it_should():
    sheet = Sheet(100, 200)
    sheet.text_upwards(50, 180, "upwards")
    left, right, top, bottom = ink(sheet)
    assert bottom - top > 3 * (right - left) and 40 <= left <= right <= 60 and 170 <= bottom <= 180


def test_a_frame_surrounds_the_picture():
    sheet = Sheet(60, 60)
    sheet.picture(20, 20, Image.new("RGB", (10, 10), "black"), frame="#009e73", thickness=3)
    array = np.asarray(sheet.image)
    assert (array[20:30, 20:30] == 0).all()
    ring = array[17:33, 17:33].copy()
    ring[3:13, 3:13] = (0, 158, 115)
    assert (ring == (0, 158, 115)).all() and (array[16] == 255).all() and (array[:, 33] == 255).all()


def test_heading_takes_the_announced_height():
    sheet = Sheet(240, 300)
    text = "a title that does not fit into one line", "nor does this subtitle, which is even longer than it"
    height = heading_height(*text, 240)
    assert sheet.heading(*text) == height
    left, right, top, bottom = ink(sheet)
    assert top >= MARGIN - 4 and bottom < height - 4 and left >= MARGIN - 1 and right <= 240 - MARGIN + 1


def test_pictures_with_few_shades_are_smaller_and_white_stays_white(tmp_path):
    sheet = Sheet(120, 100)
    noise = np.random.default_rng(0).integers(0, 255, (100, 100, 3), dtype=np.uint8)
    sheet.picture(0, 0, Image.fromarray(noise))
    full, small = sheet.save(tmp_path / "new" / "a.png"), sheet.save(tmp_path / "b.png", shades=16)
    assert small.stat().st_size < 0.7 * full.stat().st_size
    shown = np.asarray(Image.open(small))
    assert len(np.unique(shown)) == 16 and (shown[:, 100:] == 255).all()
    assert np.abs(shown[:, :100].astype(int) - noise).max() <= 9


def test_without_matplotlib_another_font_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    find_font.cache_clear()
    try:
        assert "dejavu" not in str(getattr(drawing.find_font(15), "path", "")).lower() and text_width("text") > 10
    finally:
        find_font.cache_clear()
