"""Helpers of the sources: finding files, spacing places, mapping in threads, stacking."""

from __future__ import annotations

import numpy as np
import torch

from superself.data.folders import find_files
from superself.data.sources import evenly_spaced, map_in_threads, stack_images


def test_places_are_evenly_spaced_and_distinct():
    assert evenly_spaced(4, 8) == [0, 2, 4, 6]
    assert evenly_spaced(8, 3) == [0, 1, 2]
    assert evenly_spaced(3, 0) == []


def test_threads_keep_the_order():
    assert list(map_in_threads(lambda place: place * place, range(50))) == [place * place for place in range(50)]


def test_files_of_any_extension_are_found_when_asked_for(tmp_path):
    for name in ("b.dcm", "a.png", ".hidden"):
        (tmp_path / name).touch()
    assert find_files(tmp_path).files == [tmp_path / "a.png"]
    assert find_files(tmp_path, any_extension=True).files == [tmp_path / "a.png", tmp_path / "b.dcm"]


def test_read_only_and_boolean_arrays_are_stacked():
    array = np.zeros((2, 3, 4), bool)
    array[1] = True
    array.flags.writeable = False
    assert stack_images(array).shape == (2, 1, 3, 4)
    assert stack_images(array).unique().tolist() == [0, 255]
    assert stack_images(torch.ones(2, 3, 4, 5, dtype=torch.bfloat16, requires_grad=True)).dtype == torch.float32
