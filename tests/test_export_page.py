"""The code of docs/export.md runs as it stands, but for its size: fewer images and epochs, and a small head."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from superself.exporting.writing import ENDINGS

PAGE = (Path(__file__).parent.parent / "docs" / "export.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SMALLER = [("epochs=50", "epochs=1"), ("batch_size=64", "batch_size=8"), ("image_size=32", "image_size=16")]


@pytest.mark.slow
def test_code_blocks_run_one_after_the_other(capsys):
    pytest.importorskip("onnxruntime")
    random = np.random.default_rng(0)
    Path("my_images").mkdir()
    for i in range(8):
        Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(f"my_images/{i}.png")
    names = {"__name__": "page"}
    assert len(BLOCKS) == 9
    for block in BLOCKS:
        for large, small in SMALLER:
            block = block.replace(large, small)
        exec(compile(block, "export.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "missing_keys=['fc.weight', 'fc.bias'], unexpected_keys=[]" in printed
    assert "<All keys matched successfully>" in printed  # of the detector's body
    assert "\nTrue\n" in printed  # the recipe gives the features
    assert "2 of 2 tensors from mine.safetensors" in printed
    backbone, images = names["backbone"], names["images"]
    torch.testing.assert_close(names["out"], backbone(backbone.preprocessing(images)))


def test_every_format_is_on_the_page():
    endings = re.findall(r"^\| `(\.\w+)` \|", PAGE, re.MULTILINE)
    assert {ENDINGS[ending] for ending in endings} == set(ENDINGS.values())
