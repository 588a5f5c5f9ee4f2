import torch
from torch import nn

from superself.networks import MomentumEncoder


def test_starts_equal_and_gets_no_gradient():
    online = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    target = MomentumEncoder(online)
    x = torch.randn(4, 3)
    assert torch.equal(target(x), online(x)) and not target(x).requires_grad
    assert not any(p.requires_grad for p in target.parameters())
    assert all(p.requires_grad for p in online.parameters())


def test_update_equals_the_formula():
    online = nn.Linear(3, 2)
    target = MomentumEncoder(online)
    before = [p.clone() for p in target.parameters()]
    nn.init.ones_(online.weight)
    target.update(online, 0.9)
    for old, new, p in zip(before, target.parameters(), online.parameters(), strict=True):
        assert torch.allclose(new, 0.9 * old + 0.1 * p)


def test_momentum_worked_by_hand():
    online = nn.Linear(1, 1, bias=False)
    nn.init.constant_(online.weight, 4.0)
    target = MomentumEncoder(online)
    nn.init.constant_(online.weight, 8.0)
    target.update(online, 0.75)
    assert target.average.weight.item() == 5.0
    target.update(online, 1.0)
    assert target.average.weight.item() == 5.0
    target.update(online, 0.0)
    assert target.average.weight.item() == 8.0


def test_batch_norm_keeps_its_own_running_statistics():
    online = nn.BatchNorm1d(2)
    target = MomentumEncoder(online)
    target(torch.randn(8, 2) + 5)
    assert torch.equal(online.running_mean, torch.zeros(2)) and target.average.running_mean.mean() > 0.3
    mean = target.average.running_mean.clone()
    target.update(online, 0.0)
    assert torch.equal(target.average.running_mean, mean)


def test_is_in_the_state_dict_of_its_owner():
    owner = nn.Module()
    owner.online = nn.Linear(2, 2)
    owner.target = MomentumEncoder(owner.online)
    assert "target.average.weight" in owner.state_dict()


def test_memory_formats_of_the_two_networks_may_differ():
    online = nn.Conv2d(3, 4, 3)
    target = MomentumEncoder(online)
    before = target.average.weight.clone()
    online.to(memory_format=torch.channels_last)
    nn.init.normal_(online.weight)
    assert online.weight.stride() != target.average.weight.stride()
    target.update(online, 0.9)
    torch.testing.assert_close(target.average.weight, 0.9 * before + 0.1 * online.weight)
    assert target.average.weight.is_contiguous()


def test_buffers_are_not_averaged():
    online = nn.Linear(2, 2)
    online.register_buffer("centre", torch.zeros(3))
    target = MomentumEncoder(online)
    online.centre.fill_(5)
    target.update(online, 0.0)
    assert torch.equal(target.average.centre, torch.zeros(3))
