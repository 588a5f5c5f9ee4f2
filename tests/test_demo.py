"""test.py, the usage example, runs end to end for every algorithm."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from superself import list_algorithms

from cases import tiny_images

ROOT = Path(__file__).parent.parent


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "test.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_every_algorithm_runs_for_a_few_steps_and_is_measured():
    done = run("all", "--quick", "--backbone", "resnet9:width=0.25")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("random initialised") == len(list_algorithms())
    for name in list_algorithms():
        assert Path(f"store/{name}.pt").exists() and Path(f"store/{name}.png").exists()


@pytest.mark.slow
def test_a_folder_without_labels_is_trained_on_and_shown():
    Path("mine").mkdir()
    for i, image in enumerate(tiny_images(40, size=(20, 24))):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(f"mine/{i}.png")
    done = run("rotatenet", "--data", "mine", "--size", "16", "--epochs", "1", "--backbone", "resnet9:width=0.25")
    assert done.returncode == 0, done.stderr
    assert "nothing to measure" in done.stdout and Path("store/rotatenet.png").exists()


def test_an_unknown_algorithm_is_refused_with_those_there_are():
    done = run("rotationnet")
    assert done.returncode == 2 and "rotatenet" in done.stderr
