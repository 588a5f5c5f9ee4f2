"""A step on an accelerator that is only pretended: its tensors have shapes and a device, and nothing is computed.

Mixing devices raises, and so does everything that would make Python wait for a value that the accelerator computes.
"""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from cases import CASES, TinyBackbone, tiny_images

DEVICE = "cuda"
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # only compares two of them


class PretendedAccelerator(FakeTensorMode):
    """Tensors on the CPU are computed with as ever; those on the accelerator are pretended."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        leaves = tree_leaves((args, kwargs or {}))
        if any(
            isinstance(leaf, FakeTensor) or (isinstance(leaf, torch.device) and leaf.type != "cpu") for leaf in leaves
        ):
            return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


def move(module, device=None, **layout):
    """What ``Module.to`` does to parameters and buffers, which pretended ones do not let themselves be done to."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and device is not None:
                    moved = tensor.detach().to(device)
                    tensors[name] = nn.Parameter(moved, tensor.requires_grad) if tensors is part._parameters else moved
    return module


def no_optimizer():
    """An optimiser that changes nothing: a pretended tensor has no gradient."""
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


@pytest.mark.parametrize("case", CASES, ids=[case.algorithm.__name__ for case in CASES])
def test_a_step_stays_on_the_accelerator_and_waits_for_nothing(case, monkeypatch):
    supervisor = case.make(tiny_images(size=(80, 96)))  # so large that nothing is left out
    supervisor.supervise(epochs=1, batch_size=16, name="run", progress=False)  # what is measured once is known
    batch = supervisor.images.batch(torch.arange(8))
    images, places = batch.images, batch.index
    monkeypatch.setattr(torch.Tensor, "backward", lambda self, **options: None)
    with PretendedAccelerator(allow_non_fake_inputs=True):
        supervisor._apply(lambda tensor: tensor.to(DEVICE))
        before = {name: id(tensor) for name, tensor in supervisor.state_dict(keep_vars=True).items()}
        loss = supervisor._forward((images.to(DEVICE), places.to(DEVICE)))
        optimizer = no_optimizer()
        supervisor._update(loss, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer))
        for name, tensor in supervisor.state_dict(keep_vars=True).items():
            assert tensor.device.type == DEVICE and id(tensor) == before[name], name
    assert loss.device.type == DEVICE and loss.shape == ()


@pytest.mark.parametrize("case", CASES, ids=[case.algorithm.__name__ for case in CASES])
def test_a_backbone_may_be_on_the_accelerator_before(case, monkeypatch):
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices=None: contextlib.nullcontext())  # asks the driver
    monkeypatch.setattr(nn.Module, "to", move)
    backbone = case.backbone()
    with PretendedAccelerator(allow_non_fake_inputs=True):
        backbone.to(DEVICE)
        supervisor = case.make(tiny_images(size=(80, 96)), backbone=backbone)
        assert supervisor.device.type == DEVICE
        supervisor.to(supervisor.device)  # as supervise() does
        batch = supervisor.images.load().batch(torch.arange(8))
        images, places = batch.images, batch.index
        assert supervisor._forward((images.to(DEVICE), places.to(DEVICE))).device.type == DEVICE


def test_the_pretended_accelerator_refuses_what_a_real_one_would():
    network, images = TinyBackbone(), tiny_images(4) / 255
    with PretendedAccelerator(allow_non_fake_inputs=True):
        there = copy.deepcopy(network)._apply(lambda tensor: tensor.to(DEVICE))
        assert there(images.to(DEVICE)).device.type == DEVICE
        with pytest.raises(RuntimeError, match="device"):
            there(images)
        with pytest.raises(Exception, match="_local_scalar_dense"):
            there(images.to(DEVICE)).sum().item()
        with pytest.raises(Exception, match="nonzero"):
            images.to(DEVICE)[images.to(DEVICE) > 0.5]
        assert images[images > 0.5].min() > 0.5  # on the CPU all is as ever
