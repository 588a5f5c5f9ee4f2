import numpy as np
import pytest
import torch
from PIL import Image
from superself.evaluation.figures import CELL, GAP
from torch import nn

import superself
from superself.data import Preprocessing
from superself.evaluation import show_columns, show_neighbours

from cases import TinyBackbone, tiny_images


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
    match = f"queries={queries} and neighbours={neighbours} do not fit the 5 available images; .*1 to 5 .*1 to 4"
    with pytest.raises(ValueError, match=match):
        show_neighbours(nn.Flatten(), images, tmp_path / "figure.png", queries=queries, neighbours=neighbours)


def test_stand_ins_of_unreadable_images_are_not_shown(tmp_path, monkeypatch):
    monkeypatch.setattr("superself.data.images.BROKEN_SHARE", 0.2)

    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 9

        def __getitem__(self, place):
            if place == 3:
                raise OSError("bad sector")
            return torch.full((3, 6, 6), 20 * place + 10, dtype=torch.uint8)

    shown = Image.open(show_neighbours(nn.Flatten(), Broken(), tmp_path / "a.png", queries=8, neighbours=7))
    for line in range(8):
        assert sorted(cell(shown, line, column)[0, 0, 0] for column in range(8)) == [10, 30, 50, 90, 110, 130, 150, 170]
    with pytest.raises(ValueError, match="do not fit the 8 available images"):
        show_neighbours(nn.Flatten(), Broken(), tmp_path / "a.png", queries=9, neighbours=1)


def test_columns_are_drawn_in_evaluation_mode_and_change_nothing(tmp_path):
    supervisor = superself.RotateNetSupervisor(tiny_images(6), backbone=TinyBackbone(), seed=0).train()
    weights = {name: tensor.clone() for name, tensor in supervisor.state_dict().items()}
    states = supervisor.generator.get_state(), torch.get_rng_state()
    modes = []

    def columns(images):
        modes.append((supervisor.model.backbone.training, torch.is_grad_enabled(), tuple(images.shape)))
        noise = torch.rand(len(images), 1, 20, 24, generator=supervisor.generator)
        supervisor.model(supervisor.preprocessing(images))
        return [images.float() / 255, noise]

    first = show_columns(supervisor, columns, tmp_path / "new" / "a.png", count=3)
    again = show_columns(supervisor, columns, tmp_path / "b.png", count=3)
    assert modes == [(False, False, (3, 3, 16, 16))] * 2 and supervisor.model.backbone.training
    assert first.read_bytes() == again.read_bytes() and Image.open(first).size == (2 * (16 + 2), 3 * (16 + 2))
    assert torch.equal(supervisor.generator.get_state(), states[0]) and torch.equal(torch.get_rng_state(), states[1])
    assert all(torch.equal(tensor, weights[name]) for name, tensor in supervisor.state_dict().items())


def test_columns_are_given_images_of_the_size_of_the_views(tmp_path):
    images = tiny_images(4, size=(24, 24))
    supervisor = superself.RotateNetSupervisor(images, backbone=TinyBackbone(), view_size=16)
    shown = []
    show_columns(supervisor, lambda images: shown.append(images) or [images], tmp_path / "a.png", count=4)
    assert torch.allclose(shown[0], images[:, :, 4:20, 4:20] / 255)  # the centre, as without augmentation


def test_columns_need_images(tmp_path):
    supervisor = superself.RotateNetSupervisor(backbone=TinyBackbone())
    with pytest.raises(ValueError, match="there are no images to show; pass a data set as dataset="):
        show_columns(supervisor, lambda images: [images], tmp_path / "a.png")
    show_columns(supervisor, lambda images: [images / 255], tmp_path / "a.png", dataset=tiny_images(3, size=(225, 225)))


def test_a_column_that_fails_leaves_the_generator_as_it_was(tmp_path):
    supervisor = superself.RotateNetSupervisor(tiny_images(6), backbone=TinyBackbone(), seed=0)
    state = supervisor.generator.get_state()
    with pytest.raises(ZeroDivisionError):
        show_columns(supervisor, lambda images: [images / (1 // 0)], tmp_path / "a.png")
    assert torch.equal(supervisor.generator.get_state(), state)
