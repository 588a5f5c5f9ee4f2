"""The code of docs/backbones.md runs as it stands, but for its size: fewer images and epochs."""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from superself.networks import build_backbone
from superself.networks.backbones import OWN
from superself.networks.resnets import RESNETS

PAGE = (Path(__file__).parent.parent / "docs" / "backbones.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SMALLER = [
    ("image_size=64", "image_size=24"),
    ("epochs=50", "epochs=1"),
    ("epochs=5", "epochs=1"),
    ("batch_size=64", "batch_size=16"),
    ('width=0.25")\nsupervisor', 'width=0.25", **heads)\nsupervisor'),
    ("sobel=True)", "sobel=True, **heads)"),
    ("48, 48", "16, 16"),
]


def test_code_blocks_run_one_after_the_other(capsys):
    random = np.random.default_rng(0)
    Path("my_images").mkdir()
    for i in range(16):
        Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(f"my_images/{i}.png")
    small = {"hidden": 16, "out_features": 16}
    names = {"__name__": "page", "heads": {"projector": small, "predictor": {"hidden": 16}}}
    assert len(BLOCKS) == 4
    for block in BLOCKS:
        for large, small in SMALLER:
            block = block.replace(large, small)
        exec(compile(block, "backbones.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "resnet9:width=0.25 (superself), 4 channels, 3 x 3 stem for images of 32 x 32, 128 features" in printed
    tensors = len(build_backbone("resnet9:width=0.25", (3, 96, 96)).state_dict())
    assert f"{tensors} of {tensors} tensors from weights.pth" in printed
    torch.testing.assert_close(names["inferred"].detach(), names["measured"])


def test_every_own_network_is_on_the_page():
    described = {name for name in OWN if f'`"{name}"`' in PAGE}
    assert described >= {"alexnet_bn", "resnet9", "ws_resnet18"}
    assert {int(name.partition("resnet")[2]) for name in RESNETS} == {9, 18, 34, 50, 101, 152}
