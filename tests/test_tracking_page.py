"""The code of docs/tracking.md runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PAGE = (Path(__file__).parent.parent / "docs" / "tracking.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.slow
def test_code_blocks_run_one_after_the_other(monkeypatch):
    pytest.importorskip("tensorboard")
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    random = np.random.default_rng(0)
    Path("my_images").mkdir()
    for i in range(32):
        Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(f"my_images/{i}.png")
    names = {"__name__": "page"}
    for block in BLOCKS:
        exec(compile(block.replace("image_size=32", "image_size=16"), "tracking.md", "exec"), names)
    assert len(BLOCKS) == 4
    found = {str(path.parent) for path in Path().rglob("events.out.tfevents.*")}
    assert {"store/tensorboard/base", "logs/lr0.001", "logs/lr0.01", "logs/projector"} <= found
    assert Path("store/mlflow/mlflow.db").is_file() and Path("logs/projector/features/sprite.png").is_file()
