import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from superself.data import Preprocessing
from superself.evaluation import show_neighbours
from superself.evaluation.figures import CELL, GAP


def cell(sheet, row, column, size=CELL):
    left = GAP + column * (size + GAP) + (3 * GAP if column else 0)
    return np.asarray(sheet)[GAP + row * (size + GAP) :][:size, left : left + size]


def test_each_row_is_a_query_and_its_nearest_neighbours(tmp_path):
    # Colours as features: red, dark red, green, dark green; the darker one points in the same direction.
    colours = torch.tensor([[200, 20, 0], [100, 10, 0], [20, 200, 0], [10, 100, 0]], dtype=torch.uint8)
    images = colours[:, :, None, None].expand(4, 3, 6, 6).contiguous()

    class Colour(nn.Module):
        def forward(self, x):
            return x * 0.25 + 0.5

    network = Colour()
    network.preprocessing = Preprocessing((3, 6, 6), "uint8", (0.5,) * 3, (0.25,) * 3)
    path = show_neighbours(network, images, tmp_path / "new" / "folder" / "figure.png", queries=4, neighbours=2)
    sheet = Image.open(path)
    assert path == tmp_path / "new" / "folder" / "figure.png"
    assert sheet.size == (3 * (CELL + GAP) + 4 * GAP, 4 * (CELL + GAP) + GAP)
    rows = [[cell(sheet, row, column)[0, 0].tolist() for column in range(2)] for row in range(4)]
    a, b, c, d = colours.tolist()
    assert sorted(rows) == sorted([[a, b], [b, a], [c, d], [d, c]])
    assert (np.asarray(sheet)[:, GAP + CELL : 2 * GAP + CELL + 3 * GAP] == 255).all()  # the gap after the query


@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, torch.uint8), (2, torch.uint8), (3, torch.uint16), (5, torch.float32)]
)
def test_any_channels_and_types_are_shown(tmp_path, channels, dtype):
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(5, channels, 8, 16, generator=generator) * 200).to(dtype)
    sheet = Image.open(show_neighbours(nn.Flatten(), images, tmp_path / "figure.png", queries=1, neighbours=3))
    assert sheet.mode == "RGB" and sheet.height == CELL // 2 + 2 * GAP
    shown = np.asarray(sheet)[GAP : GAP + CELL // 2, GAP : GAP + CELL]
    drawn = torch.randperm(5, generator=torch.Generator().manual_seed(0))[0]
    first = images[drawn].double()[[0, 1, 2] if channels >= 3 else [0, 0, 0]].permute(1, 2, 0).numpy()
    if dtype != torch.uint8:
        first = (first - first.min()) / (first.max() - first.min()) * 255
    assert np.abs(shown[3::6, 3::6] - first).max() <= 1  # each pixel is 6 x 6


@pytest.mark.parametrize(("queries", "neighbours"), [(6, 1), (1, 5), (0, 1)])
def test_too_few_images_are_an_error(tmp_path, queries, neighbours):
    images = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
    match = f"queries={queries} and neighbours={neighbours} cannot be shown of 5 images; .*1 to 5 .*1 to 4"
    with pytest.raises(ValueError, match=match):
        show_neighbours(nn.Flatten(), images, tmp_path / "figure.png", queries=queries, neighbours=neighbours)
