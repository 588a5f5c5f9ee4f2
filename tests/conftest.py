"""Two threads a process would be too many when tests run side by side; what is printed is not a terminal."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    """Every test runs where there is no dataset/ and no store/."""
    monkeypatch.chdir(tmp_path)
