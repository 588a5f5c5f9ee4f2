import pytest
import torch
from torch import nn

from superself.training import autocast, check_precision, choose_precision
from superself.training import precision as module

CPU = torch.device("cpu")
DENSE, DEPTHWISE = nn.Conv2d(8, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 3, groups=8))


@pytest.mark.parametrize("native, network, expected", [
    (True, DENSE, "bf16-mixed"),
    (True, DEPTHWISE, "32-true"),
    (False, DENSE, "32-true"),
])  # fmt: skip
def test_auto_depends_on_processor_and_network(monkeypatch, native, network, expected):
    monkeypatch.setattr(module, "_processor_computes_bfloat16", lambda: native)
    assert choose_precision("auto", CPU, network) == expected


def test_an_explicit_precision_is_used_on_any_hardware():
    assert choose_precision("bf16-mixed", CPU, DEPTHWISE) == "bf16-mixed"
    assert choose_precision("bf16", CPU, DEPTHWISE) == "bf16-mixed"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        *((name, name) for name in ("auto", "32-true", "bf16-mixed", "16-mixed")),
        *((name, "16-mixed") for name in ("16", 16, "fp16", "float16")),
        *((name, "bf16-mixed") for name in ("bf16", "bfloat16")),
        *((name, "32-true") for name in ("32", 32, "fp32", "float32")),
    ],
)
def test_common_spellings_of_a_precision_are_accepted(given, expected):
    assert check_precision(given) == expected


@pytest.mark.parametrize("given", ["half", "8-mixed", 64, None, torch.bfloat16])
def test_an_unknown_precision_is_refused_before_anything_else(given):
    for check in (check_precision, lambda value: choose_precision(value, CPU, DENSE)):
        with pytest.raises(
            ValueError, match=f"precision={given!r} is unknown; pass one of auto, 32-true, bf16-mixed, 16-mixed"
        ):
            check(given)


def test_autocast_computes_in_the_precision_and_only_inside():
    with autocast("bf16-mixed", CPU)():
        assert DENSE(torch.zeros(1, 8, 4, 4)).dtype == torch.bfloat16
    assert DENSE(torch.zeros(1, 8, 4, 4)).dtype == torch.float32
    with autocast("16-mixed", CPU)():
        assert DENSE(torch.zeros(1, 8, 4, 4)).dtype == torch.float16
    with autocast("32-true", CPU)():
        assert DENSE(torch.zeros(1, 8, 4, 4)).dtype == torch.float32
