import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import superself
from superself import RotateNetSupervisor, embed, features, load_embeddings
from superself.evaluation import duplicates, extraction

from cases import TinyBackbone


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for i in range(9):
        path = tmp_path / "my_images" / ("cat" if i % 2 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return tmp_path / "my_images"


@pytest.fixture
def supervisor(folder):
    return RotateNetSupervisor(str(folder), backbone=TinyBackbone(), image_size=16)


def test_features_of_a_folder_are_written_with_their_paths(folder, supervisor, tmp_path):
    found = embed(folder, supervisor, tmp_path / "new" / "x.npz")
    expected = features(supervisor.get_backbone(), folder)
    assert torch.equal(found.features, expected.features) and found.paths == expected.paths
    stored = load_embeddings(tmp_path / "new" / "x.npz")
    assert torch.equal(stored.features, expected.features)
    assert sorted(stored.paths) == sorted(str(path) for path in folder.rglob("*.png"))


def test_a_stored_run_and_its_module_give_the_same(folder):
    supervisor = RotateNetSupervisor(str(folder), backbone="resnet9:width=0.1", image_size=16)
    supervisor.supervise(name="store/base", epochs=1, batch_size=8, progress=False)
    expected = features(supervisor.get_backbone(), folder).features
    for backbone in ("store/base", supervisor.get_backbone(), supervisor):
        assert torch.equal(embed(folder, backbone).features, expected)


def test_labels_of_class_folders_are_kept(folder, supervisor):
    embed(f"imagefolder:{folder}", supervisor, "x.csv")
    assert sorted(load_embeddings("x.csv").labels.tolist()) == [0] * 4 + [1] * 5
    assert Path("x.csv").read_text().startswith("path,label,f0,f1,")


def test_any_network_will_do(folder):
    found = embed(folder, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 3)))
    assert found.features.shape == (9, 3)


def test_what_is_loaded_is_features_for_all_that_take_them(folder, supervisor):
    Image.open(folder / "cat" / "1.png").save(folder / "copy.png")
    embed(folder, supervisor, "x.npz", dtype="float16")
    found = duplicates(load_embeddings("x.npz"), 0.999999)
    assert [sorted(path.rpartition("/")[2] for path in group) for group in found.paths] == [["1.png", "copy.png"]]


def test_the_path_is_checked_before_the_first_image(folder):
    class Never(torch.nn.Module):
        def forward(self, images):
            raise AssertionError("an image was read")

    with pytest.raises(ValueError, match="by its ending"):
        embed(folder, Never(), "x.xlsx")


class Terminal:
    """Keeps what is written to a terminal."""

    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize("after, progress, drawn", [(0, True, True), (0, False, False), (60, True, False)])
def test_a_bar_is_drawn_when_it_takes_long(folder, supervisor, monkeypatch, after, progress, drawn):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(extraction, "BAR_AFTER", after)
    embed(folder, supervisor, batch_size=2, progress=progress)
    assert ("embed" in sys.stderr.text and "9" in sys.stderr.text) == drawn


def test_nothing_is_drawn_without_a_terminal(folder, supervisor, monkeypatch, capsys):
    monkeypatch.setattr(extraction, "BAR_AFTER", 0)
    embed(folder, supervisor)
    assert capsys.readouterr().err == ""


def test_both_are_public():
    assert {"embed", "load_embeddings", "runs"} <= set(superself.__all__)


def test_images_of_several_sizes_are_opened_at_one(folder, supervisor):
    Image.new("RGB", (24, 20)).save(folder / "large.png")
    assert len(embed(folder, supervisor)) == 10  # the backbone knows its size
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 4))
    with pytest.raises(ValueError, match="pass image_size="):
        embed(folder, network)
    assert repr(embed(folder, network, image_size=8)) == "10 x 4 features, with paths, 0 skipped"


def test_a_name_is_refused_with_what_opens_it(folder):
    with pytest.raises(TypeError, match=r"'m\.onnx' is not a module.*open_backbone.*load_backbone"):
        features("m.onnx", folder)
