"""Fixtures of the data tests: small images and files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def noise():
    """noise(height, width, channels, dtype) -> array of random pixels, different at each call, the same at each run."""
    random = np.random.default_rng(0)

    def make(height=8, width=8, channels=3, dtype=np.uint8):
        pixels = random.integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype=dtype)
        return pixels[:, :, 0] if channels == 1 else pixels

    return make


@pytest.fixture
def folder(tmp_path, noise):
    """folder(n, broken=[places]) -> a folder of n PNG files, of which those at ``broken`` are not images."""

    def make(n, broken=()):
        for i in range(n):
            path = tmp_path / f"{i:03d}.png"
            if i in broken:
                path.write_bytes(b"no image")
            else:
                Image.fromarray(noise()).save(path)
        return tmp_path

    return make
