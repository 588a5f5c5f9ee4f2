"""The code of docs/evaluation.md runs as it stands, and its names exist."""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from superself import evaluation
from superself.evaluation.subject import Subject

PAGE = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_code_blocks_run_one_after_the_other(capsys):
    random = np.random.default_rng(0)
    Path("photos").mkdir()
    lines = ["file,label"]
    for i in range(36):
        pixels = random.integers(0, 90, (8, 8, 3), dtype=np.uint8)
        pixels[..., i % 3] += 120  # the colour is the class
        Image.fromarray(pixels).save(f"photos/{i}.png")
        lines.append(f"{i}.png,{['red', 'green', 'blue'][i % 3]}")
    Path("labels.csv").write_text("\n".join(lines))
    torch.manual_seed(0)
    names = {"backbone": nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16))}
    assert len(BLOCKS) == 5
    for block in BLOCKS:
        exec(compile(block, "evaluation.md", "exec"), names)
    assert len(names["train"]) == 24 and names["knn"].classes == ["blue", "green", "red"]
    printed = capsys.readouterr().out
    assert "12 test images of 3 classes" in printed and "1-shot" in printed and "50%" in printed
    values = {}
    for evaluator in names["evaluators"]:
        subject = Subject(names["backbone"])
        evaluator.open(subject)
        values |= evaluator.evaluate(subject)
    assert set(values) == {"knn", "linear", "linear_at_0.5", "linear_shots_1"} and values["linear"] == 1
    assert values["knn"] == names["knn"].top1


def test_every_classifier_of_the_table_exists():
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", PAGE, re.MULTILINE)
    assert len(rows) == 5
    assert all(hasattr(evaluation, name) for row in rows for name in row)
