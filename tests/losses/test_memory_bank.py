import copy
import io
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from superself import SimCLRSupervisor
from superself.losses import DCL, InfoNCE, MemoryBankLoss, NTXent
from superself.networks import MomentumEncoder

from cases import TinyBackbone, tiny_images


def vectors(n, seed, width=3):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


class Distance(MemoryBankLoss):
    """Any loss with negatives: here, minus their mean distance to the query."""

    def forward(self, query, key):
        negatives = self.negatives(key)
        loss = (query - key).square().mean()
        if negatives is not None:
            loss = loss - torch.cdist(query, negatives).mean()
        self.remember(key, loss)
        return loss


def contains(bank, rows):
    """Which of the rows are in the bank."""
    return (torch.cdist(normalize(rows, dim=1), bank.features) < 1e-5).any(1)


def trained(loss, seed, n=4):
    """One call with its backward pass; returns the keys, which have gradients too."""
    query, key = vectors(n, seed).requires_grad_(), vectors(n, seed + 100).requires_grad_()
    loss(query, key).backward()
    return key.detach()


@pytest.mark.parametrize("kind", [NTXent, Distance])
def test_embeddings_enter_at_the_start_of_the_call_after_their_backward_pass(kind):
    loss = kind(memory_bank_size=8)
    first = trained(loss, 0)
    assert not contains(loss.bank, first).any()
    second = trained(loss, 1)
    assert contains(loss.bank, first).all() and not contains(loss.bank, second).any()


def test_a_call_that_is_not_trained_on_yet_is_no_negative_of_the_second_half_of_the_step():
    """The loss is called twice with the views exchanged; the second call must not see the keys of the same images."""
    loss = NTXent(memory_bank_size=16)
    seen = []
    for step in range(3):
        a, b = vectors(4, step).requires_grad_(), vectors(4, step + 50)
        first = loss(a, b)
        seen.append(contains(loss.bank, torch.cat([a.detach(), b])).any().item())
        second = loss(b.clone().requires_grad_(), a.detach())
        seen.append(contains(loss.bank, torch.cat([a.detach(), b])).any().item())
        (first + second).backward()
    assert not any(seen)
    loss.commit()
    assert contains(loss.bank, torch.cat([a.detach(), b])).all()  # both halves have entered


def test_negatives_are_the_rows_of_the_bank_alone():
    loss = NTXent(0.2, memory_bank_size=(6, 3))
    query, key = vectors(4, 0).requires_grad_(), vectors(4, 1)
    expected = InfoNCE(0.2)(query, key, loss.bank.features)
    assert loss(query, key).item() == pytest.approx(expected.item(), rel=1e-5)


def test_rows_wrap_around_and_none_is_dropped_where_the_batch_does_not_divide_the_bank():
    loss = NTXent(memory_bank_size=(7, 3))
    keys = [trained(loss, seed) for seed in range(5)]
    loss.commit()
    kept = normalize(torch.cat(keys)[-7:], dim=1)
    order = torch.arange(13, 20) % 7  # the places of the last 7 of 20 rows
    assert torch.allclose(loss.bank.features[order], kept)


def test_a_batch_larger_than_the_bank_leaves_its_last_rows():
    loss = NTXent(memory_bank_size=3)
    key = trained(loss, 0, n=8)
    loss.commit()
    assert contains(loss.bank, key[-3:]).all() and not contains(loss.bank, key[:-3]).any()


def test_nothing_moves_in_eval_mode_or_without_gradients():
    loss = NTXent(memory_bank_size=(8, 3))
    before = copy.deepcopy(loss.state_dict())
    trained(loss.eval(), 1)
    with torch.no_grad():
        loss.train()(vectors(4, 2).requires_grad_(), vectors(4, 3))
    loss(vectors(4, 2), vectors(4, 3))  # nothing is trained on these either
    loss.commit()
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def test_calls_in_eval_mode_do_not_let_in_what_waits():
    loss = NTXent(memory_bank_size=(8, 3))
    key = trained(loss, 0)
    loss.eval()(vectors(4, 2).requires_grad_(), vectors(4, 3))
    with torch.no_grad():
        loss.train()(vectors(4, 2), vectors(4, 3))
    assert not contains(loss.bank, key).any()
    trained(loss, 1)
    assert contains(loss.bank, key).all()


def test_a_call_without_backward_pass_leaves_nothing_behind_when_a_later_one_has_it():
    loss = NTXent(memory_bank_size=(16, 3))
    loss(torch.full((4, 3), torch.nan).requires_grad_(), vectors(4, 5) + torch.nan)  # its step is skipped
    key = trained(loss, 0)
    loss.commit()
    assert loss.bank.enqueued == 4 and contains(loss.bank, key).all() and loss.bank.features.isfinite().all()


def test_a_supervisor_takes_no_loss_with_a_bank_of_its_own():
    with pytest.raises(
        ValueError, match=r"NTXent with a memory bank of its own, .*SimCLRSupervisor\(memory_bank_size=4096\)"
    ):
        SimCLRSupervisor(tiny_images(), backbone=TinyBackbone(), loss=NTXent(memory_bank_size=8))


def test_what_waits_for_a_backward_pass_that_never_comes_stays_within_the_size_of_the_bank():
    loss = NTXent(memory_bank_size=8)
    for seed in range(50):
        loss(vectors(4, seed).requires_grad_(), vectors(4, seed + 1))
    assert sum(len(call.embeddings) for call in loss._waiting) <= 8 + 4


def test_the_state_holds_the_bank_also_where_its_width_is_not_known_yet():
    loss = DCL(memory_bank_size=8)
    trained(loss, 0)
    loss.commit()
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    restored = DCL(memory_bank_size=8)
    restored.load_state_dict(torch.load(file))
    assert sorted(loss.state_dict()) == ["bank.enqueued", "bank.features", "bank.places"]
    for each in (loss, restored):
        trained(each, 1)
        each.commit()
    assert all(torch.equal(value, restored.state_dict()[name]) for name, value in loss.state_dict().items())


def test_without_a_bank_there_is_no_state_and_nothing_is_kept():
    loss = NTXent()
    trained(loss, 0)
    assert loss.state_dict() == {} and loss._waiting == [] and loss.bank is None


def test_the_loop_of_the_documentation_learns_with_a_symmetric_loss():
    """Half of the values of each image are kept in both views, half are noise."""
    torch.manual_seed(0)
    x, spread = torch.randn(32, 12), torch.tensor([0.1] * 6 + [2.0] * 6)
    model = nn.Linear(12, 4)
    keys, criterion = MomentumEncoder(model), NTXent(0.1, memory_bank_size=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(25):
        for images in x.split(8):
            x0, x1 = (images + spread * torch.randn_like(images) for _ in range(2))
            loss = 0.5 * (criterion(model(x0), keys(x1)) + criterion(model(x1), keys(x0)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            keys.update(model, 0.9)
            losses.append(loss.item())
    assert criterion.bank.filled == 1
    assert sum(losses[-20:]) < 0.2 * sum(losses[:20])


EXAMPLES = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8"), re.DOTALL
)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda code: code.split("\n")[0])
def test_examples_of_the_documentation_run(example):
    names = {"__name__": "example"}
    exec(example, names)
    bank = getattr(names.get("criterion"), "bank", None)
    if "keys" in names:
        assert bank.enqueued == 7 * 2 * 64  # both halves of all steps but the last


@pytest.mark.parametrize(
    ("size", "message"), [(-1, "memory_bank_size must be .* got -1"), ((4, 0), "the width in memory_bank_size must be")]
)
def test_sizes_out_of_range_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        NTXent(memory_bank_size=size)
