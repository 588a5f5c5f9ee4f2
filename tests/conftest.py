"""Two threads a process would be too many when tests run side by side; what is printed is not a terminal."""

import pytest
import torch

import superself.algorithms.detcon
import superself.evaluation.pictures.columns

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    """Every test runs where there is no dataset/ and no store/."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def drawn(monkeypatch):
    """The pictures that supervisors write, each as its columns of images and their titles."""
    pictures = []
    for module in (superself.evaluation.pictures.columns, superself.algorithms.detcon):

        def record(columns, path, *args, write=module.write_pictures, **options):
            pictures.append((list(columns), list(options["titles"])))
            return write(columns, path, *args, **options)

        monkeypatch.setattr(module, "write_pictures", record)
    return pictures
