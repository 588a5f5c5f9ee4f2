"""Compiled networks compute what ordinary ones do, and give way to them where they cannot be compiled."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from superself import RotateNetSupervisor
from superself.training import read_checkpoint

from cases import CASES, TinyBackbone, tiny_images
from steps import IDS, one_step

SHORT = {"epochs": 2, "batch_size": 8, "name": "run", "progress": False}
compile_module = nn.Module.compile


def with_backend(monkeypatch, backend):
    """Networks are compiled by another backend than inductor, which needs a C++ compiler and a minute."""
    torch._dynamo.reset()
    calls = []

    def compiler(graph, inputs):
        calls.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_module(module, backend=compiler))
    return calls


def assert_close(one, other, tolerance):
    torch.testing.assert_close(one["loss"], other["loss"], rtol=tolerance, atol=tolerance)
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(gradient, other["gradients"][name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("split", [{}, {"micro_batch": 4}], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=() if name == "RotateNetSupervisor" else pytest.mark.thorough)
        for case, name in zip(CASES, IDS, strict=True)
    ],
)
def test_compiled_networks_give_the_loss_and_gradients_of_ordinary_ones(case, split, monkeypatch):
    calls = with_backend(monkeypatch, "aot_eager")
    compiled = one_step(case, prepare=nn.Module.train, compile=True, **split)
    assert calls
    assert_close(compiled, one_step(case, prepare=nn.Module.train, **split), 1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_inductor_gives_the_loss_and_gradients_of_ordinary_networks(case):
    torch._dynamo.reset()
    compiled = one_step(case, prepare=nn.Module.train, compile=True)
    assert_close(compiled, one_step(case, prepare=nn.Module.train), 1e-3)


def test_files_backbone_and_average_of_a_compiled_run_are_those_of_ordinary_networks(monkeypatch):
    with_backend(monkeypatch, "eager")
    backbone = TinyBackbone()
    supervisor = RotateNetSupervisor(tiny_images(), backbone=backbone, seed=0)
    supervisor.supervise(compile=True, average=0.9, accumulate=2, clip=0.1, **SHORT)
    names = {*read_checkpoint("run")["model"], *supervisor.averaged_weights}
    assert not [name for name in names if "_orig_mod" in name]
    assert supervisor.get_backbone() is backbone and type(backbone) is TinyBackbone
    averaged = supervisor.get_backbone(averaged=True)
    assert type(averaged) is TinyBackbone and averaged._compiled_call_impl is None
    loaded = RotateNetSupervisor(backbone=TinyBackbone()).load("run")
    for name, value in supervisor.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


@pytest.mark.parametrize("split", [{}, {"micro_batch": 4}], ids=str)
def test_networks_that_cannot_be_compiled_run_uncompiled_with_one_warning(split, monkeypatch):
    def fails(graph, inputs):
        raise RuntimeError("No working C++ compiler found")

    torch._dynamo.reset()
    plain = RotateNetSupervisor(tiny_images(), backbone=TinyBackbone(), seed=0).supervise(**SHORT | split)
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_module(module, backend=fails))
    with pytest.warns(UserWarning, match="could not be compiled .*No working C") as caught:
        supervisor = RotateNetSupervisor(tiny_images(), backbone=TinyBackbone(), seed=0)
        supervisor.supervise(compile=True, **SHORT | split | {"name": "fallback"})
    assert len([w for w in caught if "could not be compiled" in str(w.message)]) == 1
    for name, value in plain.state_dict().items():
        assert torch.equal(value, supervisor.state_dict()[name]), name


def test_an_error_of_a_network_is_not_taken_for_one_of_the_compiler(monkeypatch):
    with_backend(monkeypatch, "eager")

    class Breaks(TinyBackbone):
        def forward(self, images):
            if len(images) == 32:
                raise KeyError("mine")
            return super().forward(images)

    supervisor = RotateNetSupervisor(tiny_images(), backbone=Breaks(), seed=0)
    with pytest.raises(Exception, match="mine"):
        supervisor.supervise(compile=True, **SHORT)
