import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from torch.utils.data import TensorDataset

from superself.basics.drawing import RIGHT, WRONG
from superself.evaluation import Features, show_overview
from superself.evaluation.pictures.overview import typical_of_classes

from cases import TinyBackbone, tiny_images


def has(sheet, colour):
    return (np.asarray(sheet) == ImageColor.getrgb(colour)).all(2).sum() > 500


def written(monkeypatch):
    """The texts that are written on sheets from now on."""
    texts, text = [], "superself.evaluation.pictures.overview.Sheet.text"
    monkeypatch.setattr(text, lambda sheet, x, y, text, *args, **options: texts.append(text))
    return texts


def on_circle(*degrees):
    """Features in two dimensions."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


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


def test_the_captions_have_the_classes_that_are_coloured_and_the_share_over_all_images(tmp_path, monkeypatch):
    texts = written(monkeypatch)
    for count, caption in ((4, "3 classes"), (2, "2 classes"), (1, "1 class")):
        texts.clear()
        labels = torch.arange(40) % count
        show_overview(TinyBackbone(), TensorDataset(tiny_images(40), labels), tmp_path / "a.png", method="pca")
        assert f"40 images, {caption} coloured" in texts
        assert [text for text in texts if text in "0123"] == list("0123"[: min(count, 3)])
        assert sum("all 40 images: " in text and "of neighbours are right" in text for text in texts) == 2
    assert "all 40 images: 100% of neighbours are right" in texts
    assert any("Chance: 100% right" in text for text in texts)


def test_a_query_has_as_many_right_neighbours_as_its_class_has_on_average():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    networks = [torch.randn(60, 4, generator=generator) + k * labels[:, None] for k in (0.6, 0)]
    found = {
        name: Features(one, labels, [str(n) for n in range(60)], {}) for name, one in zip("ab", networks, strict=True)
    }
    queries = typical_of_classes(found, (labels, ["x", "y", "z"]))
    assert labels[queries].tolist() == [0, 1, 2]
    for one in networks:
        directions = torch.nn.functional.normalize(one, dim=1)
        nearest = (directions @ directions.T).fill_diagonal_(-2).topk(8).indices
        right = (labels[nearest] == labels[:, None]).sum(1).float()
        for query in queries:
            assert (right[query] - right[labels == labels[query]].mean()).abs() <= 1
    again = typical_of_classes(found, (labels, ["x", "y", "z"]), ["z", 0])
    assert again.tolist() == [queries[2], queries[0]]


def test_of_equal_queries_the_one_in_the_middle_of_its_class_is_shown():
    features = torch.cat([on_circle(*range(0, 20, 2)), on_circle(*range(180, 200, 2))])  # all neighbours are right
    labels = torch.arange(20) // 10
    found = {"a": Features(features, labels, [str(n) for n in range(20)], {})}
    assert set(typical_of_classes(found, (labels, ["x", "y"])).tolist()) <= {4, 5, 14, 15}


def test_classes_without_images_are_an_error(tmp_path):
    images = TensorDataset(tiny_images(12), torch.arange(12) % 2)
    for classes in ([0, 1, 2], [], [1, 1], ["cat"]):
        with pytest.raises(ValueError, match="must be 1 to 3 different classes that have images; there are 0, 1."):
            show_overview(TinyBackbone(), images, tmp_path / "a.png", classes=classes)
    with pytest.raises(ValueError, match="need images with class labels"):
        show_overview(TinyBackbone(), tiny_images(12), tmp_path / "a.png", classes=[0])
