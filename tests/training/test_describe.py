import functools
from pathlib import Path

import torch
import yaml
from torch import nn

from superself.training import describe_value, warmup_cosine


def test_values_of_every_kind_are_described():
    def f(): ...

    described = describe_value(
        {
            "a": (1, 2.5, None, True),
            "net": nn.ReLU(),
            "f": torch.optim.Adam,
            "t": torch.zeros(2, 3),
            "p": Path("x"),
            "g": f,
            "schedule": warmup_cosine(0.1),
            "partial": functools.partial(torch.optim.SGD, momentum=0.9),
        }
    )
    assert described["a"] == [1, 2.5, None, True] and described["f"] == "torch.optim.adam.Adam"
    assert "ReLU object" in described["net"] and described["t"] == "Tensor of shape (2, 3)" and described["p"] == "x"
    assert (
        "warmup=0.1" in described["schedule"] and "0.9" in described["partial"]
    )  # so that a resumed run sees a change
    yaml.safe_dump(described)
