"""gather and mean: identities in one process, the global batch with its gradient in two."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import superself
from superself.basics.distributed import gather, mean, own_rows, rank, world_size

TWO_PROCESSES = """
import sys, torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from superself.basics.distributed import gather, mean, rank, world_size

distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
assert (rank(), world_size()) == (int(sys.argv[2]), 2)
images = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
mine = images[3 * rank() : 3 * rank() + 3]


def spread(z):
    z = z - z.mean(0)
    return (z @ z.T).exp().sum()


def fresh():
    torch.manual_seed(1)
    return nn.Linear(3, 2)


alone = fresh()
spread(alone(images)).backward()  # one process with the whole batch
together = DistributedDataParallel(fresh())
z = together(mine)
assert torch.allclose(gather(z), alone(images), atol=1e-6)
spread(gather(z)).backward()
for p, q in zip(alone.parameters(), together.parameters()):
    assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-5), (p.grad, q.grad)

assert gather(torch.tensor([rank(), 7])).tolist() == [0, 7, 1, 7]  # places, without a gradient

alone, together = fresh(), DistributedDataParallel(fresh())
alone(images).mean(0).square().sum().backward()
x = together(mine).mean(0)
before = x.detach().clone()
mean(x).square().sum().backward()
assert torch.equal(x.detach(), before)  # not changed in place
for p, q in zip(alone.parameters(), together.parameters()):
    assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-5), (p.grad, q.grad)
distributed.destroy_process_group()
"""


def test_a_single_process_sees_its_own_batch_unchanged():
    z = torch.randn(3, 2, requires_grad=True)
    assert gather(z) is z and mean(z) is z
    assert (rank(), world_size()) == (0, 1)


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one_with_the_whole_batch(tmp_path):
    command = [sys.executable, "-c", TWO_PROCESSES, str(tmp_path / "rendezvous")]
    root = Path(superself.__file__).parents[1]
    runs = [subprocess.Popen([*command, str(r)], cwd=root, stderr=subprocess.PIPE, text=True) for r in range(2)]
    try:
        for run in runs:
            _, errors = run.communicate(timeout=120)
            assert run.returncode == 0, errors
    finally:
        for run in runs:
            run.kill()


def test_in_one_process_every_row_is_its_own():
    assert torch.equal(own_rows(torch.zeros(3, 2)), torch.eye(3, dtype=torch.bool))
