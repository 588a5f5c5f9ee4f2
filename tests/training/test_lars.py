import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from superself.training import LARS, read_checkpoint, write_checkpoint


def parameters(seed=0):
    """A matrix, a vector, a scalar, a matrix of zeros and a matrix whose gradient is zero."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (5,), (), (2, 2), (2, 3)]
    made = [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes]
    made[3].data.zero_()
    return made


def set_gradients(params, step):
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
    params[4].grad.zero_()


def slow_lars(
    params, steps, lrs, momentum=0.9, weight_decay=0.0, trust_coefficient=1e-3, nesterov=False, clip=False, adapt=None
):
    """One number at a time."""
    velocities = [[0.0] * p.numel() for p in params]
    for step in range(steps):
        set_gradients(params, step)
        for p, velocity in zip(params, velocities, strict=True):
            adapted = p.dim() > 1 if adapt is None else adapt
            decay = weight_decay if adapted or adapt is False else 0.0
            w, g = p.detach().flatten().tolist(), p.grad.flatten().tolist()
            norm_w, norm_g = sum(x * x for x in w) ** 0.5, sum(x * x for x in g) ** 0.5
            ratio = 1.0
            if adapted and norm_w > 0 and norm_g > 0:
                ratio = trust_coefficient * norm_w / (norm_g + weight_decay * norm_w)
                ratio = min(ratio, 1.0) if clip else ratio
            for i in range(len(w)):
                update = ratio * (g[i] + decay * w[i])
                velocity[i] = momentum * velocity[i] + update
                w[i] -= lrs[step] * (update + momentum * velocity[i] if nesterov else velocity[i])
            p.data.copy_(torch.tensor(w, dtype=p.dtype).reshape(p.shape))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "nesterov": True},
        {"momentum": 0.0, "weight_decay": 0.1},
        {"trust_coefficient": 5.0, "clip": True},
        {"trust_coefficient": 5.0},
        {"weight_decay": 0.1, "adapt": True},
        {"weight_decay": 0.1, "adapt": False},
    ],
    ids=str,
)
def test_lars_equals_double_loop(options):
    lrs = [0.5, 0.3, 0.1, 0.1]
    fast, slow = parameters(), parameters()
    optimizer = LARS(fast, lr=lrs[0], **options)
    for step, lr in enumerate(lrs):
        optimizer.param_groups[0]["lr"] = lr
        set_gradients(fast, step)
        gradients = [p.grad.clone() for p in fast]
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(fast, gradients, strict=True))  # gradients are not changed
    slow_lars(slow, len(lrs), lrs, **options)
    for p, q in zip(fast, slow, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_one_step_worked_by_hand():
    """||w|| = 5, ||g|| = 10: ratio = 0.1 * 5 / (10 + 0.4 * 5) = 1/24, step = 1/24 * (6 + 0.4 * 3, 8 + 0.4 * 4)."""
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    weight.grad = torch.tensor([[6.0, 8.0]])
    LARS([weight], lr=1.0, momentum=0.0, weight_decay=0.4, trust_coefficient=0.1).step()
    assert weight.tolist() == [pytest.approx([3 - 7.2 / 24, 4 - 9.6 / 24])]


def test_without_adaptation_it_is_sgd():
    ours, theirs = parameters(), parameters()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}
    optimizers = LARS(ours, adapt=False, **options), torch.optim.SGD(theirs, **options)
    for step in range(3):
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            set_gradients(params, step)
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_the_flag_of_a_group_decides_before_the_number_of_dimensions():
    (matrix, *_), (same, *_) = parameters(), parameters()
    set_gradients([matrix, *parameters()[1:]], 0)
    same.grad = matrix.grad.clone()
    before = matrix.detach().clone()
    LARS([{"params": [matrix], "adapt": False}, {"params": [same]}], lr=1.0).step()
    torch.testing.assert_close(matrix, before - matrix.grad)
    assert (same - before).norm().item() == pytest.approx(1e-3 * before.norm().item())  # the trust coefficient


def test_state_is_stored_and_restored_exactly():
    params = parameters()
    optimizer = LARS(params, lr=0.5, weight_decay=0.1)
    for step in range(2):
        set_gradients(params, step)
        optimizer.step()
    write_checkpoint("run", {"algorithm": "A", "model": {}, "optimizer": optimizer.state_dict()})
    copied = [nn.Parameter(p.detach().clone()) for p in params]
    restored = LARS(copied, lr=0.1)
    restored.load_state_dict(read_checkpoint("run")["optimizer"])
    for group, other in ((params, optimizer), (copied, restored)):
        set_gradients(group, 2)
        other.step()
    assert all(torch.equal(p, q) for p, q in zip(params, copied, strict=True))


def test_parameters_without_a_gradient_stay_and_a_closure_gives_the_loss():
    params = parameters()
    before = copy.deepcopy(params)
    optimizer = LARS(params, lr=1.0)
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True)) and not optimizer.state

    def closure():
        optimizer.zero_grad()
        loss = params[0].sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == before[0].sum()
    assert not torch.equal(params[0], before[0]) and torch.equal(params[1], before[1])


def test_a_step_reads_no_value_from_the_device():
    """A tensor without values raises as soon as one is read, for example by .item()."""
    with FakeTensorMode():
        params = [nn.Parameter(torch.empty(3, 3)), nn.Parameter(torch.empty(3))]
        optimizer = LARS(params, weight_decay=0.1, nesterov=True, clip=True)
        for p in params:
            p.grad = torch.empty_like(p)
        optimizer.step()


@pytest.mark.gpu
def test_a_step_on_an_accelerator_equals_the_cpu_and_does_not_wait():
    if not torch.cuda.is_available():
        pytest.skip("needs an accelerator")
    device = torch.device("cuda")
    here, there = parameters(), [nn.Parameter(p.detach().to(device)) for p in parameters()]
    optimizers = [LARS(p, lr=0.5, weight_decay=0.1) for p in (here, there)]
    for step in range(3):
        set_gradients(here, step)
        for p, q in zip(here, there, strict=True):
            q.grad = p.grad.to(device)
        optimizers[0].step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizers[1].step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for p, q in zip(here, there, strict=True):
        torch.testing.assert_close(p, q.cpu(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1}, "lr=-1 must not be negative"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must not be negative"),
        ({"momentum": 1.0}, r"momentum=1.0 must be in \[0, 1\)"),
        ({"trust_coefficient": 0}, "trust_coefficient=0 must be positive"),
        ({"momentum": 0, "nesterov": True}, "nesterov=True needs momentum, got momentum=0"),
    ],
)
def test_arguments_are_validated(options, message):
    with pytest.raises(ValueError, match=message):
        LARS(parameters(), **options)
