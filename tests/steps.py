"""One optimizer step of a case, so that two ways to compute it can be compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cases import CASES, Case

IDS = [case.algorithm.__name__ for case in CASES]


def without_batch_norm(supervisor: nn.Module) -> nn.Module:
    """Every batch norm of the networks replaced by a norm of each image alone, in place."""
    for module in list(supervisor.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _BatchNorm):
                norm = nn.GroupNorm(1, child.num_features)
                setattr(module, name, norm.requires_grad_(child.weight is None or child.weight.requires_grad))
    return supervisor


def draw_alike(monkeypatch: Any) -> None:
    """Every random number depends on its column only, so that images get the same ones in any part of a batch."""
    rand = torch.rand

    def alike(*shape: Any, generator: Any = None, **options: Any) -> torch.Tensor:
        shape = tuple(shape[0]) if shape and not isinstance(shape[0], int) else shape
        if not shape:
            return rand(shape, generator=torch.Generator().manual_seed(1), **options)
        row = rand(shape[1:], generator=torch.Generator().manual_seed(1), **options)
        return row.expand(shape).clone()

    monkeypatch.setattr(torch, "rand", alike)


def one_step(case: Case, prepare: Any = without_batch_norm, **settings: Any) -> dict[str, Any]:
    """Loss, gradients, notes and state of a supervisor after a step that leaves its weights as they are."""

    class Looks(case.algorithm):
        def _update(self, loss, optimizer, lr_scheduler):
            optimizer.zero_grad()
            loss.backward()
            gradients = {name: p.grad for name, p in self.named_parameters() if p.requires_grad}
            seen.update(loss=loss.detach(), gradients=gradients, notes=self.run.metrics.means())

    seen: dict[str, Any] = {}
    supervisor = prepare(replace(case, algorithm=Looks).make())
    supervisor.supervise(
        **{
            "lr": 1e-3,
            "epochs": 1,
            "batch_size": 16,
            "name": "run",
            "progress": False,
            "precision": "32-true",
            **settings,
        }
    )
    buffers = {name: buffer.clone() for name, buffer in supervisor.named_buffers()}
    return {**seen, "buffers": buffers, "supervisor": supervisor}


def assert_equal_steps(one: dict[str, Any], other: dict[str, Any], tolerance: float = 1e-5) -> None:
    """The same loss, gradients, notes and buffers; gradients may differ in proportion to the largest."""
    torch.testing.assert_close(one["loss"], other["loss"], rtol=tolerance, atol=tolerance)
    for part in ("gradients", "buffers", "notes"):
        assert one[part].keys() == other[part].keys()
        atol = tolerance * (largest(other[part]) if part == "gradients" else 1)
        for name in one[part]:
            torch.testing.assert_close(
                one[part][name], other[part][name], rtol=tolerance, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
            )


def largest(gradients: dict[str, torch.Tensor | None]) -> float:
    """The largest entry, or 1 if all are smaller: rounding errors of the others are in proportion to it."""
    return max(1.0, *(gradient.abs().max().item() for gradient in gradients.values() if gradient is not None))
