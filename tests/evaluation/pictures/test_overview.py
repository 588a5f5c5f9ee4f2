import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from torch.utils.data import TensorDataset

from superself.basics.drawing import RIGHT, WRONG
from superself.evaluation import show_overview

from cases import TinyBackbone, tiny_images


def has(sheet, colour):
    return (np.asarray(sheet) == ImageColor.getrgb(colour)).all(2).sum() > 500


@pytest.fixture
def all_shades(monkeypatch):
    """Without fewer shades, so that colours are exact."""
    save = "superself.evaluation.pictures.overview.Sheet.save"
    monkeypatch.setattr(save, lambda sheet, path, shades: sheet.image.save(path) or path)


def test_views_map_and_neighbours_of_both_networks_are_shown(tmp_path, all_shades):
    images = TensorDataset(tiny_images(40), torch.arange(40) % 4)
    state = torch.get_rng_state()
    one, other = (show_overview(TinyBackbone(), images, tmp_path / name, method="pca") for name in ("a.png", "b.png"))
    assert one.read_bytes() == other.read_bytes() and torch.equal(state, torch.get_rng_state())
    sheet = Image.open(one)
    assert sheet.width == 1200 and 480 <= sheet.height <= 600 and has(sheet, RIGHT) and has(sheet, WRONG)


def test_without_labels_nothing_is_framed_and_any_channels_are_shown(tmp_path, all_shades):
    for images in (tiny_images(12), (tiny_images(12, channels=2).float() / 255), tiny_images(12, size=(8, 16))):
        network = TinyBackbone(channels=images.shape[1])
        sheet = Image.open(show_overview(network, images, tmp_path / "a.png", method="pca", augment="plain"))
        assert sheet.width == 1200 and not has(sheet, RIGHT) and not has(sheet, WRONG)


def test_the_file_is_small_and_too_few_images_are_an_error(tmp_path):
    noise = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = (255 * torch.nn.functional.interpolate(noise, size=(32, 32), mode="bilinear")).byte()
    assert show_overview(TinyBackbone(), images, tmp_path / "new" / "a.png", method="pca").stat().st_size < 300_000
    with pytest.raises(ValueError, match="the picture needs at least 9 images, got 8; pass a larger data set"):
        show_overview(TinyBackbone(), images[:8], tmp_path / "b.png")
