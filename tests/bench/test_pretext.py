import pytest
import torch

from bench.pretext import reconstruction_errors
from superself import BiGanSupervisor

from cases import TinyBackbone
from tensors import images_of


@pytest.mark.parametrize(
    ("what_comes_back", "expected"),
    [("the image", (0.0, 2.0)), ("the mean", (1.0, 1.0)), ("another image", (2.0, 2.0)), ("half of it", (0.25, 1.25))],
)
def test_errors_of_what_comes_back_of_noise_are_those_worked_by_hand(what_comes_back, expected):
    class Known(BiGanSupervisor):
        def reconstruct(self, images):
            wanted = self.preprocessing(images)
            of = {
                "the image": wanted,
                "the mean": 0 * wanted,
                "another image": wanted.flip(0),
                "half of it": wanted / 2,
            }
            return of[what_comes_back]

    supervisor = Known((255 * images_of(600)).to(torch.uint8), backbone=TinyBackbone())
    assert reconstruction_errors(supervisor, supervisor.images) == pytest.approx(expected, abs=0.05)
