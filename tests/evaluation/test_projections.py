from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from superself.data import Preprocessing
from superself.evaluation import Projections, projections, tensorboard_projections
from superself.evaluation.subject import Subject

from cases import TinyBackbone, tiny_images

pytest.importorskip("tensorboard")
from google.protobuf import text_format
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig


class Colour(nn.Module):
    """The mean colour as features."""

    def forward(self, x):
        return x.mean((2, 3))


def colours(count=5):
    """Images of one colour each, with labels."""
    values = torch.arange(count, dtype=torch.uint8) * 40
    images = values[:, None, None, None].expand(count, 3, 20, 30).contiguous()
    return TensorDataset(images, torch.arange(count) % 2)


@pytest.fixture
def backbone():
    network = Colour()
    network.preprocessing = Preprocessing((3, 20, 30), "uint8", (0.0,) * 3, (1.0,) * 3)
    return network


def config(logdir="log"):
    return text_format.Parse((Path(logdir) / "projector_config.pbtxt").read_text(), ProjectorConfig())


def test_features_labels_names_and_thumbnails_are_in_the_same_order(backbone):
    path = tensorboard_projections(backbone, colours(), "log")
    assert path == Path("log/projector_config.pbtxt")
    (entry,) = config().embeddings
    tensors = np.loadtxt(Path("log") / entry.tensor_path, delimiter="\t")
    np.testing.assert_allclose(tensors, np.arange(5)[:, None].repeat(3, 1) * 40 / 255, atol=1e-5)
    lines = (Path("log") / entry.metadata_path).read_text().splitlines()
    assert lines[0] == "label\tfile" and [line.split("\t")[0] for line in lines[1:]] == ["0", "1", "0", "1", "0"]
    side = entry.sprite.single_image_dim[0]
    sprite = np.asarray(Image.open(Path("log") / entry.sprite.image_path))
    assert sprite.shape == (3 * side, 3 * side, 3) and side == 32
    centres = [sprite[row * side + side // 2, column * side + side // 2, 0] for row, column in np.ndindex(3, 3)]
    assert centres == [0, 40, 80, 120, 160, 255, 255, 255, 255]


def test_tensorboard_finds_the_projection_among_its_runs(backbone):
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

    tensorboard_projections(backbone, colours(), "log/base-projector")
    assert EventMultiplexer().AddRunsFromDirectory("log").Reload().RunPaths() == {
        "base-projector": "log/base-projector"
    }


def test_a_large_data_set_is_thinned_out_with_a_message(backbone):
    with pytest.warns(UserWarning, match="the projector gets 3 of 5 images, evenly spaced; pass count="):
        tensorboard_projections(backbone, colours(), "log", count=3)
    assert np.loadtxt("log/features/tensors.tsv")[:, 0].round(2).tolist() == [0.0, 0.31, 0.63]
    with pytest.raises(ValueError, match="count=300000 is more than the 262144 thumbnails"):
        tensorboard_projections(backbone, colours(), "log", count=300_000)


def test_a_sprite_never_exceeds_what_browsers_take(backbone, monkeypatch):
    monkeypatch.setattr(projections, "SPRITE", 60)
    tensorboard_projections(backbone, colours(), "log")
    assert Image.open("log/features/sprite.png").size == (60, 60)


def test_unreadable_images_are_left_out_and_files_are_named():
    for number in range(3):
        Image.new("RGB", (8, 8), (number * 100,) * 3).save(f"{number}.png")
    Path("broken.png").write_bytes(b"no picture")
    files = ["0.png", "broken.png", "1.png", "2.png"] + ["0.png"] * 20
    tensorboard_projections(Colour(), files, "log")
    names = Path("log/features/metadata.tsv").read_text().splitlines()
    assert names[:4] == ["0.png", "1.png", "2.png", "0.png"] and len(names) == 23
    assert len(np.loadtxt("log/features/tensors.tsv")) == 23


def test_features_of_another_name_are_added_and_those_of_the_same_name_replaced(backbone):
    for name in ("trained", "random", "trained"):
        tensorboard_projections(backbone, colours(), "log", name=name)
    assert [entry.tensor_name for entry in config().embeddings] == ["random", "trained"]


def test_class_names_are_written_where_they_are_known(backbone):
    data = colours()
    data.classes = ["cat", "dog"]
    tensorboard_projections(backbone, data, "log")
    assert Path("log/features/metadata.tsv").read_text().splitlines()[1].startswith("cat\t")


def test_the_evaluator_writes_the_same_and_reports_nothing(backbone):
    evaluator, subject = Projections(colours(), "log", every=2), Subject(backbone)
    evaluator.open(subject)
    assert evaluator.evaluate(subject) == {} and evaluator.every == 2
    assert [entry.tensor_name for entry in config().embeddings] == ["features"]


def test_the_network_and_the_random_state_stay_as_they_are():
    network = TinyBackbone().train()
    state, random = {n: t.clone() for n, t in network.state_dict().items()}, torch.get_rng_state()
    tensorboard_projections(network, tiny_images(4), "log")
    assert network.training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
