import pytest
import torch
from PIL import Image
from sheets import cells

import superself
from superself.evaluation import show_columns

from cases import TinyBackbone, tiny_images


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


def test_titles_stand_above_the_columns(tmp_path):
    supervisor = superself.RotateNetSupervisor(tiny_images(6), backbone=TinyBackbone(), seed=0)
    path = show_columns(
        supervisor, lambda images: [images / 255] * 3, tmp_path / "a.png", count=2, titles=["one", "two", "three"]
    )
    table = cells(path, 2, 3)
    assert (table[0][0] == table[0][2]).all() and (table[0][0] != table[1][0]).any()
    with pytest.raises(ValueError, match="titles has 1 texts, the picture has 3 titles"):
        show_columns(supervisor, lambda images: [images / 255] * 3, tmp_path / "a.png", titles=["one"])
