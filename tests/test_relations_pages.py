"""The code of docs/your_images.md and docs/runs.md runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from superself import RotateNetSupervisor, SimCLRSupervisor

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def write_images(folder, count, seed):
    random = np.random.default_rng(seed)
    Path(folder).mkdir()
    for i in range(count):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(f"{folder}/{i}.png")


@pytest.fixture
def trained():
    """Two runs, and three folders of images; one of each 24 is a copy."""
    for seed, folder in enumerate(("my_images", "train_images", "test_images")):
        write_images(folder, 24, seed)
    for folder in ("my_images", "test_images"):
        Image.open("train_images/3.png").save(f"{folder}/copy.png")
    Image.open("my_images/7.png").save("my_images/seven.png")
    for name, cls in (("store/base", RotateNetSupervisor), ("store/other", SimCLRSupervisor)):
        supervisor = cls("my_images", backbone="resnet9:width=0.1", image_size=16)
        supervisor.supervise(name=name, epochs=1, batch_size=8, progress=False)


def test_code_of_your_images_runs(trained, capsys):
    names = {}
    assert len(blocks("your_images.md")) == 5
    for block in blocks("your_images.md"):
        exec(compile(block, "your_images.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "2 of 26 images in 1 group of" in printed and "20 images to label first" in printed
    assert "1 of 25 test images are near-duplicates of a training image" in printed
    assert len(names["kept"]) == 25 and not set(names["first"].paths) & set(names["then"].paths)


def test_code_of_runs_runs(trained, capsys):
    for path in Path("store").glob("*.csv"):  # as with probe=
        head, values = path.read_text().splitlines()
        path.write_text(f"{head},knn\n{values},0.5\n")
    assert len(blocks("runs.md")) == 2
    names = {}
    for block in blocks("runs.md"):
        exec(compile(block, "runs.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "2 runs in store" in printed and "arguments.temperature" in printed
