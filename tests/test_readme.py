"""The code of the README and the guide runs as it stands, but for its size: fewer images and epochs."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from superself.algorithms import ALGORITHMS, algorithms_table

ROOT = Path(__file__).parent.parent
README, GUIDE = (ROOT / "README.md").read_text(), (ROOT / "docs" / "guide.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCKS = re.findall(r"```python\n(.*?)```", README + GUIDE, re.DOTALL)
SMALLER = [
    ("image_size=64", "image_size=16"),
    ("image_size=32", "image_size=16"),
    ("size=64)", "size=16, count=96)"),
    ("epochs=50", "epochs=1"),
    ("epochs=5", "epochs=1"),
    ("RotateNetSupervisor(train_dataset)", 'RotateNetSupervisor(train_dataset, backbone="resnet18")'),
]


@pytest.mark.slow
def test_code_blocks_run_one_after_the_other(capsys):
    random = np.random.default_rng(0)
    Path("my_images/nested").mkdir(parents=True)
    for i in range(32):
        Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(f"my_images/nested/{i}.png")
    assert len(BLOCKS) == 8
    for block in BLOCKS:
        for large, small in SMALLER:
            block = block.replace(large, small)
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    assert "random initialised" in printed and Path("store/classifier.pt").exists()


@pytest.mark.slow
def test_code_blocks_of_comparing_run_one_after_the_other():
    page = (Path(__file__).parent.parent / "docs" / "comparing.md").read_text()
    for large, small in [*SMALLER, ("size=64)", "size=16, count=64)"), ("(0, 1, 2)", "(0,)"), ("3 epochs", "1 epoch")]:
        page = page.replace(large, small)
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)).replace("resnet18", "resnet9:width=0.25")
    exec(compile(code, "comparing.md", "exec"), {"__name__": "comparing"})


def test_example_of_overriding_is_at_most_ten_lines():
    block = next(block for block in BLOCKS if "class Clipped" in block)
    lines = block[block.index("class") : block.rindex("Clipped")].strip().splitlines()
    assert len(lines) <= 10


def test_the_table_of_algorithms_is_made_from_the_classes():
    assert algorithms_table() in README


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_algorithm_names_its_paper_and_what_it_is_good_for(name):
    authors, address = ALGORITHMS[name].paper
    assert authors and address.startswith("https://") and ALGORITHMS[name].good_for


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_the_readme_fits_on_about_two_screens():
    assert len(README.splitlines()) < 110
