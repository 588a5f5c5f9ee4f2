"""The scripts of examples/ run from end to end, with fewer and smaller images."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_three_methods_are_compared_reported_and_exported():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = ["--size", "16", "--count", "160", "--epochs", "1", "--store", "three"]
    command = [sys.executable, str(ROOT / "examples" / "three_methods.py"), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for method in ("simclr", "rotatenet", "splitbrain"):
        assert "Comparison" in Path(f"three/{method}.html").read_text()
    assert Path("three/best.safetensors").is_file() and Path("three/curves.png").is_file()
    assert "rotation" in Path("three/simclr.csv").read_text()
