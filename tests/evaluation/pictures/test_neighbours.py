import random as python_random

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from sheets import areas, rows_of_colours
from torch import nn
from torch.utils.data import TensorDataset

from superself.basics.drawing import MARGIN, RIGHT, WRONG
from superself.data import Preprocessing, open_images
from superself.evaluation import Features, NeighboursFigure, query_fig, show_neighbours
from superself.evaluation.pictures.neighbours import find_neighbours, share_right, spread_over_classes
from superself.evaluation.subject import Subject

from cases import TinyBackbone, tiny_images

GREEN, ORANGE, WHITE = ImageColor.getrgb(RIGHT), ImageColor.getrgb(WRONG), (255, 255, 255)
# Colours as features: red, dark red, green, dark green; the darker one points in the same direction.
COLOURS = [(200, 20, 0), (100, 10, 0), (20, 200, 0), (10, 100, 0)]
IMAGES = torch.tensor(COLOURS, dtype=torch.uint8)[:, :, None, None].expand(4, 3, 6, 6).contiguous()


class Colour(nn.Module):
    def forward(self, x):
        return x * 0.25 + 0.5


class OtherOrder(nn.Module):
    """Red and blue exchanged with green: dark colours are close to dark ones."""

    def forward(self, x):
        bright = (x * 0.25 + 0.5).amax(dim=(1, 2, 3))
        return torch.stack([bright, 1 - bright], 1)


def colour_network():
    network = Colour()
    network.preprocessing = Preprocessing((3, 6, 6), "uint8", (0.5,) * 3, (0.25,) * 3)
    return network


def test_each_row_is_a_query_and_its_nearest_neighbours(tmp_path):
    path = show_neighbours(colour_network(), IMAGES, tmp_path / "new" / "a.png", queries=4, neighbours=2)
    assert path == tmp_path / "new" / "a.png"
    rows = rows_of_colours(Image.open(path), COLOURS)
    assert sorted([image for image, _ in row][:2] for row in rows) == [[0, 1], [1, 0], [2, 3], [3, 2]]
    assert all(frame == WHITE for row in rows for _, frame in row)  # there are no labels


def test_frames_tell_which_neighbours_are_of_the_class_of_the_query(tmp_path):
    labels = torch.tensor([0, 0, 0, 1])
    path = show_neighbours(colour_network(), TensorDataset(IMAGES, labels), tmp_path / "a.png", 4, 2)
    for (query, frame), *found in rows_of_colours(Image.open(path), COLOURS):
        assert frame == WHITE and len(found) == 2
        for neighbour, frame in found:
            assert frame == (GREEN if labels[neighbour] == labels[query] else ORANGE)


def test_the_second_network_gets_a_row_of_its_own_for_each_query(tmp_path):
    path = show_neighbours(colour_network(), IMAGES, tmp_path / "a.png", queries=4, neighbours=1, random=OtherOrder())
    rows = rows_of_colours(Image.open(path), COLOURS)
    assert len(rows) == 8
    for trained, other in zip(rows[::2], rows[1::2], strict=True):
        (query, _), (neighbour, _) = trained
        assert neighbour == {0: 1, 1: 0, 2: 3, 3: 2}[query]
        assert [image for image, _ in other] == [{0: 2, 1: 3, 2: 0, 3: 1}[query]]


def test_random_weights_differ_and_change_nothing(tmp_path):
    network = TinyBackbone().train()
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), python_random.getstate()
    one = show_neighbours(network, tiny_images(12), tmp_path / "a.png", 3, 4, random=True)
    other = show_neighbours(network, tiny_images(12), tmp_path / "b.png", 3, 4, random=network)
    assert one.read_bytes() != other.read_bytes() and network.training
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert torch.equal(states[0], torch.get_rng_state()) and (states[1] == np.random.get_state()[1]).all()
    assert states[2] == python_random.getstate()
    assert (
        one.read_bytes()
        == show_neighbours(network, tiny_images(12), tmp_path / "c.png", 3, 4, random=True).read_bytes()
    )


def test_a_network_that_cannot_be_initialised_again_is_an_error(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return self.scale * x

    with pytest.raises(ValueError, match="scale cannot be reset.*Or pass a randomly initialised backbone as random="):
        show_neighbours(Odd(), IMAGES, tmp_path / "a.png", 1, 1, random=True)


@pytest.mark.parametrize(("queries", "neighbours"), [(5, 1), (1, 4), (0, 1)])
def test_too_few_images_are_an_error(tmp_path, queries, neighbours):
    match = f"queries={queries} and neighbours={neighbours} do not fit the 4 available images; .*1 to 4 .*1 to 3"
    with pytest.raises(ValueError, match=match):
        show_neighbours(nn.Flatten(), IMAGES, tmp_path / "a.png", queries=queries, neighbours=neighbours)


@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, torch.uint8), (2, torch.uint8), (3, torch.uint16), (5, torch.float32)]
)
def test_any_channels_and_types_are_shown(tmp_path, channels, dtype):
    images = (torch.rand(5, channels, 8, 16, generator=torch.Generator().manual_seed(0)) * 200).to(dtype)
    sheet = Image.open(show_neighbours(nn.Flatten(), images, tmp_path / "a.png", queries=1, neighbours=3))
    assert sheet.mode == "RGB" and (np.asarray(sheet)[-80:-30, MARGIN : MARGIN + 80] < 250).mean() > 0.3


class Broken(torch.utils.data.Dataset):
    """Nine images, the one at place 3 cannot be read."""

    def __len__(self):
        return 9

    def __getitem__(self, place):
        if place == 3:
            raise OSError("bad sector")
        return torch.full((3, 6, 6), 20 * place + 10, dtype=torch.uint8), place // 3


@pytest.fixture
def allow_broken(monkeypatch):
    monkeypatch.setattr("superself.data.images.BROKEN_SHARE", 0.2)


def test_unreadable_images_are_left_out(tmp_path, allow_broken):
    shown = Image.open(show_neighbours(nn.Flatten(), Broken(), tmp_path / "a.png", queries=8, neighbours=7))
    greys = [(20 * place + 10,) * 3 for place in range(9)]
    rows = rows_of_colours(shown, greys)
    assert len(rows) == 8 and all(sorted(k for k, _ in row) == [0, 1, 2, 4, 5, 6, 7, 8] for row in rows)
    for (query, _), *found in rows:
        assert all((frame == GREEN) == (k // 3 == query // 3) for k, frame in found)
    with pytest.raises(ValueError, match="do not fit the 8 available images"):
        show_neighbours(nn.Flatten(), Broken(), tmp_path / "a.png", queries=9, neighbours=1)


def test_share_equals_a_double_loop():
    generator = torch.Generator().manual_seed(0)
    found, labels = Features(torch.randn(30, 4, generator=generator)), torch.randint(3, (30,), generator=generator)
    right = 0
    for i, vector in enumerate(found.features):
        cosines = [
            (float(torch.cosine_similarity(vector, other, 0)), j) for j, other in enumerate(found.features) if j != i
        ]
        right += sum(int(labels[j] == labels[i]) for _, j in sorted(cosines, reverse=True)[:5])
    assert share_right(found, labels, 5) == pytest.approx(right / 150)


def test_neighbours_are_the_same_when_computed_in_parts(monkeypatch):
    found = Features(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)))
    rows = torch.arange(0, 40, 3)
    monkeypatch.setattr("superself.evaluation.pictures.neighbours.COSINES", 100)  # 2 of 14 rows at a time
    cosines = nn.functional.normalize(found.features) @ nn.functional.normalize(found.features).T
    cosines.fill_diagonal_(-2)
    for result in (find_neighbours(found, rows, 3), find_neighbours(Features(found.features * 7), rows, 3)):
        assert torch.equal(result.rows, cosines[rows].topk(3).indices)


def test_queries_come_from_as_many_classes_as_possible():
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 2)
    order = spread_over_classes(55, labels)
    assert sorted(order.tolist()) == list(range(55))
    assert sorted(labels[order[:3]].tolist()) == [0, 1, 2] and sorted(labels[order[3:6]].tolist()) == [0, 1, 2]


def test_query_fig_has_one_query_of_each_class_in_their_order(tmp_path):
    labels = torch.tensor([1, 1, 0, 0])
    path = query_fig(colour_network(), TensorDataset(IMAGES, labels), tmp_path / "a.png", neighbours=2)
    assert [labels[row[0][0]] for row in rows_of_colours(Image.open(path), COLOURS)] == [0, 1]
    path = query_fig(colour_network(), TensorDataset(IMAGES, torch.arange(4)), tmp_path / "a.png", 1, classes=2)
    assert [row[0][0] for row in rows_of_colours(Image.open(path), COLOURS)] == [0, 3]


def test_query_fig_needs_classes(tmp_path):
    with pytest.raises(ValueError, match="has no class labels|have no class labels"):
        query_fig(colour_network(), IMAGES, tmp_path / "a.png")
    several = TensorDataset(IMAGES, torch.rand(4, 2))
    with pytest.raises(ValueError, match="have no class labels"):
        query_fig(colour_network(), several, tmp_path / "a.png")


def test_the_evaluator_draws_the_same_picture_and_computes_nothing(tmp_path):
    network = TinyBackbone()
    images = open_images(TensorDataset(tiny_images(12), torch.arange(12) % 3))
    network.preprocessing = Preprocessing.of(images)
    for random in (False, True):
        subject, evaluator = Subject(network, images=images), NeighboursFigure(None, 3, 4, random=random)
        evaluator.open(subject)
        assert evaluator.evaluate(subject) == {}
        drawn = [evaluator.figure(subject, tmp_path / name) for name in ("a.png", "b.png")]
        expected = show_neighbours(network, images, tmp_path / "c.png", 3, 4, random=random)
        assert [path.read_bytes() for path in drawn] == [expected.read_bytes()] * 2
    with pytest.raises(ValueError, match="neighbours_figure has no images to show; pass a data set to it"):
        NeighboursFigure().open(Subject(network))


def test_the_title_tells_the_share_of_right_neighbours(tmp_path, monkeypatch):
    texts = []
    heading = "superself.evaluation.pictures.neighbours.Sheet.heading"
    monkeypatch.setattr(heading, lambda sheet, *given: texts.append(given) or 60)
    labels = torch.tensor([0, 0, 1, 2])
    show_neighbours(colour_network(), TensorDataset(IMAGES, labels), tmp_path / "a.png", 2, 1)
    assert texts[0][0] == "50% of the neighbours show the query's class"
    show_neighbours(colour_network(), TensorDataset(IMAGES, labels), tmp_path / "a.png", 2, 1, random=OtherOrder())
    assert texts[1][0] == "Neighbours of the same class: trained 50% · random weights 0%"
    show_neighbours(colour_network(), IMAGES, tmp_path / "a.png", 2, 1)
    assert texts[2][0] == "Nearest neighbours" and areas(Image.open(tmp_path / "a.png"), COLOURS[0])
