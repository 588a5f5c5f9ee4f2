"""Batch norm over parts of a batch or over all processes is switched in place; two processes are in tests/distributed."""

import copy

import pytest
import torch
from torch import nn

from superself import MomentumContrastSupervisor
from superself.networks import BatchRenorm1d
from superself.networks.batch_norm import (
    batch_norms,
    is_synchronized,
    restore_batch_norm,
    split_batch_norm,
    synchronize_batch_norm,
)

from cases import TinyBackbone, tiny_images

ORDINARY = [nn.BatchNorm2d, nn.BatchNorm1d, BatchRenorm1d]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(16, 5, bias=False), nn.BatchNorm1d(5), nn.Linear(5, 5), BatchRenorm1d(5, warmup=2),
    ).to(memory_format=torch.channels_last)  # fmt: skip


def images(n=12):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def step(network, x, function):
    """Output, gradients and state after ``function(x)``, whose output is weighted so that no gradient vanishes."""
    output = function(x)
    (output**3 * torch.arange(output.numel()).view_as(output)).mean().backward()
    return {"output": output.detach(), **{n: p.grad for n, p in network.named_parameters()}}, network.state_dict()


@pytest.mark.parametrize(("n", "parts"), [(12, 4), (12, 1), (11, 3)])
def test_split_batch_norm_in_one_pass_equals_a_pass_for_each_part(n, parts):
    several, one = network().train(), network().train()
    for x in (images(n), 3 * images(n) + 1):
        several.zero_grad()
        one.zero_grad()
        expected = step(several, x, lambda x: torch.cat([several(part) for part in x.tensor_split(parts)]))
        with split_batch_norm(one, parts):
            found = step(one, x, one)
        for a, b in zip(expected, found, strict=True):
            assert a.keys() == b.keys()
            for name in a:
                assert torch.allclose(a[name], b[name], rtol=1e-5, atol=1e-5), name
    assert batch_norms(one)[0].num_batches_tracked == 2 * parts  # running statistics move once for each part


def test_batch_norms_are_ordinary_again_after_the_pass_and_after_an_error():
    net = network()
    before = [dict(vars(norm)) for norm in batch_norms(net)]
    with pytest.raises(RuntimeError), split_batch_norm(net, 3):
        assert [type(norm) for norm in batch_norms(net)] != ORDINARY
        net(torch.zeros(6, 1, 8, 8))
    assert [type(norm) for norm in batch_norms(net)] == ORDINARY
    assert [vars(norm).keys() for norm in batch_norms(net)] == [variables.keys() for variables in before]


def test_in_evaluation_mode_nothing_is_split():
    net, x = network().eval(), images()
    expected = net(x)
    with split_batch_norm(net, 4):
        assert torch.equal(net(x), expected)


def test_synchronized_batch_norm_in_a_single_process_is_ordinary_batch_norm():
    ordinary, net = network().train(), network().train()
    assert synchronize_batch_norm(net) is net and is_synchronized(net) and not is_synchronized(ordinary)
    expected, found = (step(n, images(), n) for n in (ordinary, net))
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(net.eval()(images()), ordinary.eval()(images()))


def test_switching_keeps_modules_parameters_and_keys_and_is_undone_by_restoring():
    net = network()
    modules, parameters, keys = list(net.modules()), list(net.parameters()), list(net.state_dict())
    for _ in range(2):  # a second call changes nothing
        synchronize_batch_norm(net)
    assert isinstance(net[1], nn.BatchNorm2d)  # other code still finds it
    assert type(copy.deepcopy(net)[1]) is type(net[1]) is not nn.BatchNorm2d
    restore_batch_norm(net)
    assert [type(norm) for norm in batch_norms(net)] == ORDINARY and not is_synchronized(net)
    assert all(a is b for a, b in zip(net.modules(), modules, strict=True))
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True)) and list(net.state_dict()) == keys


def test_the_backbone_of_a_restored_supervisor_is_the_users_module_with_ordinary_batch_norms():
    backbone = TinyBackbone()
    supervisor = MomentumContrastSupervisor(tiny_images(8), backbone=backbone, queue_size=8, seed=0)
    synchronize_batch_norm(supervisor)
    assert is_synchronized(supervisor.model) and is_synchronized(supervisor.key_encoder)
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    restore_batch_norm(supervisor)
    assert supervisor.get_backbone() is backbone
    assert [type(norm) for norm in batch_norms(backbone)] == [nn.BatchNorm2d, nn.BatchNorm2d]


def test_a_batch_norm_with_a_forward_of_its_own_is_refused():
    class Odd(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).abs()

    net = nn.Sequential(nn.BatchNorm2d(2), Odd(3))
    with pytest.raises(TypeError, match="sync_batchnorm=True cannot synchronise Odd, .* pass sync_batchnorm=False"):
        synchronize_batch_norm(net)
    assert type(net[0]) is nn.BatchNorm2d  # nothing was switched


def test_what_torch_has_synchronized_stays_as_it_is():
    net = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    assert isinstance(net[1], nn.SyncBatchNorm) and is_synchronized(net)
    assert type(synchronize_batch_norm(net)[1]) is nn.SyncBatchNorm is type(restore_batch_norm(net)[1])


def test_parts_of_a_few_images_have_at_least_two_rows_each():
    net = nn.BatchNorm1d(3).train()
    with split_batch_norm(net, 4):
        net(torch.randn(3, 3))
    assert net.num_batches_tracked == 1
