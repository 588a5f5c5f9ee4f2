import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from sheets import areas
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from superself.basics.drawing import COLOURS
from superself.data import Preprocessing, open_images
from superself.evaluation import Features, MapFigure, show_map
from superself.evaluation.pictures.map import OTHER, THUMBNAIL, class_colours, map_of
from superself.evaluation.subject import Subject

from cases import TinyBackbone, tiny_images


def clusters(count=40, classes=4):
    """Features of well separated classes, and images of one grey for each."""
    labels = torch.arange(count) % classes
    noise = 0.05 * torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    images = (40 * labels).view(-1, 1, 1, 1).expand(count, 3, 8, 8).byte().contiguous()
    return Features(F.one_hot(labels, 8) + noise, labels), images


def share_of_close_pairs(places, labels):
    """How often the closest point on the map has the same class."""
    distances = torch.cdist(places, places)
    distances.fill_diagonal_(torch.inf)
    return (labels[distances.argmin(1)] == labels).float().mean().item()


def test_pca_equals_that_of_numpy_up_to_scale():
    found, _ = clusters()
    points = map_of(found.features, "pca")
    vectors = F.normalize(found.features.double(), dim=1).numpy()
    _, values, directions = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    expected = (vectors - vectors.mean(0)) @ directions[:2].T
    for axis in range(2):  # inside the bounds, places are a linear function of the projection
        inside = (points.places[:, axis] > 0) & (points.places[:, axis] < 1)
        correlation = np.corrcoef(points.places[inside, axis].numpy(), expected[inside.numpy(), axis])[0, 1]
        assert abs(correlation) == pytest.approx(1, abs=1e-6)
    shares = 100 * values**2 / (values**2).sum()
    assert points.caption == f"across: {shares[0]:.0f}% of the variance; up: {shares[1]:.0f}%"


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_places_are_in_the_unit_square_equal_at_every_call_and_keep_classes_together(method):
    found, _ = clusters()
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    one, other = (map_of(found.features, method, seed=1).places for _ in range(2))
    assert torch.equal(one, other) and one.shape == (40, 2) and one.min() >= 0 and one.max() <= 1
    assert share_of_close_pairs(one, found.labels) > 0.6
    assert torch.equal(state[0], torch.get_rng_state()) and (state[1] == np.random.get_state()[1]).all()


@pytest.mark.thorough  # umap takes half a minute to compile its code
@pytest.mark.filterwarnings("ignore")
def test_umap_keeps_classes_together():
    pytest.importorskip("umap")
    found, _ = clusters()
    one, other = (map_of(found.features, "umap", seed=1).places for _ in range(2))
    assert torch.equal(one, other) and share_of_close_pairs(one, found.labels) > 0.9


def test_a_missing_umap_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    found, images = clusters()
    with pytest.raises(ImportError, match=r'method="umap" needs umap-learn; run: pip install .superself\[umap\]'):
        show_map(found, images, tmp_path / "a.png", method="umap")


def test_constant_features_and_two_features_have_a_map():
    assert map_of(torch.ones(6, 3)).places.isfinite().all()
    assert map_of(torch.rand(6, 1)).places.isfinite().all()


def test_points_have_the_colours_of_their_classes_and_the_legend_too(tmp_path):
    found, images = clusters()
    sheet = Image.open(show_map(found, images, tmp_path / "new" / "a.png", thumbnails=False))
    for colour in COLOURS[:4]:
        assert len(areas(sheet, ImageColor.getrgb(colour))) > 1  # a box in the legend, and dots
    without = Features(found.features)
    assert Image.open(show_map(without, images, tmp_path / "b.png", thumbnails=False)).height < sheet.height


def test_the_most_frequent_classes_have_colours_and_the_rest_is_grey():
    labels = torch.tensor([11] * 3 + [k for k in range(11) for _ in range(2 if k else 1)])
    colours, legend = class_colours(labels, [f"c{k}" for k in range(12)])
    named = {name for name, _ in legend}
    assert len(legend) == 11 and "c11" in named and "c0" not in named and legend[-1] == ("2 other classes", OTHER)
    assert colours[3] == OTHER and colours[0] == dict(legend)["c11"]


def test_thumbnails_do_not_cover_each_other(tmp_path):
    found, images = clusters(400)
    sheet = Image.open(show_map(found, images, tmp_path / "a.png"))
    boxes = [box for grey in (0, 40, 80, 120) for box in areas(sheet, (grey,) * 3) if box[2] - box[0] >= THUMBNAIL]
    assert len(boxes) >= 4 and all(box[2] - box[0] == box[3] - box[1] == THUMBNAIL for box in boxes)


def test_a_second_map_and_a_limit(tmp_path):
    found, images = clusters()
    network = TinyBackbone()
    one = Image.open(show_map(network, images, tmp_path / "a.png"))
    two = Image.open(show_map(network, images, tmp_path / "a.png", random=True))
    three = Image.open(show_map(found, images, tmp_path / "a.png", random=Features(found.features.flip(0)), limit=4))
    assert one.width < two.width == three.width
    with pytest.raises(ValueError, match="a map needs at least 4 images, got 3; pass a larger data set or limit"):
        show_map(found, images, tmp_path / "a.png", limit=3)


def test_wrong_arguments_are_named(tmp_path):
    found, images = clusters()
    with pytest.raises(ValueError, match="random=True needs a backbone, and features were given"):
        show_map(found, images, tmp_path / "a.png", random=True)
    with pytest.raises(ValueError, match="features of 40 images and 30 readable images; pass the data set that"):
        show_map(found, images[:30], tmp_path / "a.png")
    with pytest.raises(ValueError, match="method='lda' is unknown; pass 'pca', 'tsne' or 'umap'"):
        show_map(found, images, tmp_path / "a.png", method="lda")
    with pytest.raises(ValueError, match="method='lda' is unknown"):
        MapFigure(method="lda")


def test_images_of_two_channels_and_unreadable_ones(tmp_path, monkeypatch):
    monkeypatch.setattr("superself.data.images.BROKEN_SHARE", 0.2)

    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 9

        def __getitem__(self, place):
            if place == 3:
                raise OSError("bad sector")
            return torch.full((2, 6, 6), 20 * place + 10, dtype=torch.uint8)

    assert Image.open(show_map(nn.Flatten(), Broken(), tmp_path / "a.png")).mode == "RGB"


def test_the_evaluator_draws_the_same_picture_and_computes_nothing(tmp_path):
    network = TinyBackbone()
    images = open_images(TensorDataset(tiny_images(12), torch.arange(12) % 3))
    network.preprocessing = Preprocessing.of(images)
    subject, evaluator = Subject(network), MapFigure(images, random=True)
    evaluator.open(subject)
    assert evaluator.evaluate(subject) == {}
    drawn = evaluator.figure(subject, tmp_path / "a.png")
    assert drawn.read_bytes() == show_map(network, images, tmp_path / "b.png", random=True).read_bytes()
