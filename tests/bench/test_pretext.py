"""Reconstruction errors."""

import pytest
import torch

from bench.pretext import reconstruction_errors
from superself import BiGanSupervisor

from cases import TinyBackbone
from tensors import images_of


@pytest.mark.parametrize(
    ("reconstruction", "expected"),
    [("its image", (0.0, 2.0)), ("the mean", (1.0, 1.0)), ("another image", (2.0, 2.0)), ("half of it", (0.25, 1.25))],
)
def test_reconstruction_errors_of_noise_are_those_worked_by_hand(reconstruction, expected):
    class Known(BiGanSupervisor):
        def reconstruct(self, images):
            wanted = self.preprocessing(images)
            return {
                "its image": wanted,
                "the mean": 0 * wanted,
                "another image": wanted.flip(0),
                "half of it": wanted / 2,
            }[reconstruction]

    supervisor = Known((255 * images_of(600)).to(torch.uint8), backbone=TinyBackbone())
    assert reconstruction_errors(supervisor, supervisor.images) == pytest.approx(expected, abs=0.05)
