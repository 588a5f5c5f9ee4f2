import pytest
import torch
from torch import nn

from superself.training import autocast, choose_precision
from superself.training import precision as module

CPU = torch.device("cpu")
DENSE, DEPTHWISE = nn.Conv2d(8, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 3, groups=8))


@pytest.mark.parametrize("native, network, expected", [
    (True, DENSE, "bf16-mixed"),
    (True, DEPTHWISE, "32-true"),
    (False, DENSE, "32-true"),
])  # fmt: skip
def test_auto_follows_processor_and_network(monkeypatch, native, network, expected):
    monkeypatch.setattr(module, "_processor_computes_bfloat16", lambda: native)
    assert choose_precision("auto", CPU, network) == expected


def test_what_is_asked_for_is_taken_and_the_unknown_refused():
    assert choose_precision("bf16-mixed", CPU, DEPTHWISE) == "bf16-mixed"
    with pytest.raises(ValueError, match="precision='half' is unknown; pass one of auto, 32-true, bf16-mixed"):
        choose_precision("half", CPU, DENSE)


def test_autocast_computes_in_bfloat16_and_only_inside():
    with autocast("bf16-mixed", CPU)():
        assert DENSE(torch.zeros(1, 8, 4, 4)).dtype == torch.bfloat16
    assert DENSE(torch.zeros(1, 8, 4, 4)).dtype == torch.float32
    with autocast("32-true", CPU)():
        assert DENSE(torch.zeros(1, 8, 4, 4)).dtype == torch.float32
