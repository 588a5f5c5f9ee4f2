"""Several accelerators in one process, simulated on the CPU: copies of the networks, each with a part of the batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from superself import RotateNetSupervisor
from superself.data import BatchLoader
from superself.networks import CombinedNet, replicas, replicated

from cases import CASES, TinyBackbone, tiny_images
from steps import largest

DEVICES = (0, 1)


def _copies(tensors, devices, detach=False):
    """What torch's broadcast gives: on the first device a buffer itself, elsewhere copies, through which gradients flow."""
    if detach:
        return [[t.detach() if device == 0 else t.detach().clone() for t in tensors] for device in devices]
    return [[t.clone() for t in tensors] for device in devices]


def _scatter(inputs, devices):
    return list(zip(*(whole.chunk(len(devices)) for whole in inputs), strict=True))


def _gather(outputs, device):
    if isinstance(outputs[0], tuple):
        return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))
    return torch.cat(outputs)


@pytest.fixture
def two_devices(monkeypatch):
    """torch's ``replicate`` with two simulated devices; counts the parts that were computed."""
    sizes = []

    def apply(calls, parts, devices):
        sizes.append([len(part[0]) for part in parts])
        enabled = torch.is_grad_enabled()

        def work(call, part):  # a new thread starts with gradients and without autocast, as in torch's function
            with torch.set_grad_enabled(enabled):
                return call(*part)

        with ThreadPoolExecutor(len(parts)) as pool:
            return list(pool.map(work, calls, parts))

    monkeypatch.setitem(replicas.replicate.__globals__, "_broadcast_coalesced_reshape", _copies)
    monkeypatch.setattr(replicas, "scatter", _scatter)
    monkeypatch.setattr(replicas, "parallel_apply", apply)
    monkeypatch.setattr(replicas, "gather", _gather)
    return sizes


def loss_and_gradients(supervisor, devices):
    supervisor.zero_grad()
    supervisor.generator.manual_seed(1)
    torch.manual_seed(1)
    data = next(iter(BatchLoader(supervisor.images, [torch.arange(8)])))
    with replicated(supervisor, devices):
        loss = supervisor._forward(data)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in supervisor.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", CASES, ids=[case.algorithm.__name__ for case in CASES])
def test_two_devices_give_the_loss_and_the_gradients_of_one(case, two_devices):
    supervisor = case.make().eval()  # in train mode batch norm would see the images of one device at a time
    loss, gradients = loss_and_gradients(supervisor, ())
    assert not two_devices
    loss_of_two, gradients_of_two = loss_and_gradients(supervisor, DEVICES)
    assert two_devices and all(len(sizes) == 2 for sizes in two_devices)
    torch.testing.assert_close(loss_of_two, loss)
    assert gradients.keys() == gradients_of_two.keys()
    atol = 1e-6 * largest(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_of_two[name], gradient, rtol=1e-4, atol=atol, msg=name)


def test_momentum_encoders_use_both_devices(two_devices):
    byol = next(case for case in CASES if case.algorithm.__name__ == "BYOLSupervisor").make().eval()
    with replicated(byol, DEVICES), torch.no_grad():
        assert torch.allclose(byol.target(torch.ones(6, 3, 16, 16)), byol.target.average(torch.ones(6, 3, 16, 16)))
    assert two_devices == [[3, 3], [3, 3]]


def test_batch_statistics_of_the_first_device_are_kept(two_devices):
    net, alone = (CombinedNet(TinyBackbone(), torch.nn.Linear(16, 2)) for _ in range(2))
    images = torch.randn(8, 3, 16, 16)
    with replicated(net, DEVICES):
        net(images)
    alone(images[:4])
    for (name, buffer), expected in zip(net.named_buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, msg=name)


def test_modules_and_names_stay_the_same(two_devices):
    net = CombinedNet(TinyBackbone(), torch.nn.Linear(16, 2))
    names, backbone = list(net.state_dict()), net.backbone
    with replicated(net, DEVICES):
        net(torch.randn(4, 3, 16, 16)).sum().backward()
        assert list(net.state_dict()) == names and net.backbone is backbone
    assert "replica_devices" not in vars(net)


def test_replicas_compute_in_the_precision_of_the_run(two_devices):
    net = CombinedNet(TinyBackbone(), torch.nn.Linear(16, 2))
    with replicated(net, DEVICES), torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(torch.randn(4, 3, 16, 16)).dtype == torch.bfloat16
    with replicated(net, DEVICES):
        assert net(torch.randn(4, 3, 16, 16)).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two accelerators")
def test_two_accelerators_in_one_process_train_like_one():
    losses = []
    for options in ({}, {"devices": 2, "strategy": "dp"}):
        supervisor = RotateNetSupervisor(tiny_images(), backbone=torch.nn.Conv2d(3, 8, 3), seed=0).to("cuda")
        supervisor.supervise(epochs=2, batch_size=8, name="run", overwrite=True, precision="32-true", **options)
        losses.append(torch.cat([p.detach().flatten().cpu() for p in supervisor.parameters()]))
        assert type(supervisor.get_backbone()) is torch.nn.Conv2d
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-5)
