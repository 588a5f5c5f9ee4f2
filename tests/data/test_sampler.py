"""Places of an epoch over processes and resumptions, and of data sets that are too large for a list of places."""

from __future__ import annotations

import pytest
import torch

from superself.data import EpochSampler, sampler
from superself.data.sampler import permuted_positions


def batches(n, batch_size, world_size=1, start=0, **options):
    """The batches of all processes together, from ``start`` on."""
    ranks = [
        EpochSampler(n, batch_size, seed=3, rank=rank, world_size=world_size, **options) for rank in range(world_size)
    ]
    for each in ranks:
        each.set_epoch(2, start)
    return [torch.cat(shares) for shares in zip(*ranks, strict=True)]


@pytest.mark.parametrize("listed", [2**26, 4])  # as a list, and computed batch by batch
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("n", [12, 31])
def test_all_ranks_together_give_the_order_of_one_process_also_resumed_with_another_number(
    monkeypatch, listed, shuffle, n
):
    monkeypatch.setattr(sampler, "LISTED", listed)
    alone = torch.stack(batches(n, 6, shuffle=shuffle))
    assert alone.flatten()[:n].sort().values.tolist() == list(range(n))  # every image exactly once
    assert torch.equal(alone.flatten()[n:], alone.flatten()[: alone.numel() - n])  # then the first ones again
    for world_size in (1, 2, 3):
        assert torch.equal(torch.stack(batches(n, 6, world_size, shuffle=shuffle)), alone)
        for after in (1, 2, 3):  # the first batch with one number of processes, the rest with another
            parts = batches(n, 6, world_size, shuffle=shuffle)[:1] + batches(n, 6, after, start=1, shuffle=shuffle)
            assert torch.equal(torch.stack(parts), alone)


def test_places_of_a_large_data_set_are_permuted_too(monkeypatch):
    monkeypatch.setattr(sampler, "LISTED", 4)
    places = torch.tensor([3, 4, 8, 11, 12, 30])
    order = torch.cat(batches(31, 2, places=places))
    assert order.sort().values.tolist() == places.tolist() and order.tolist() != places.tolist()


def test_order_of_up_to_the_limit_is_that_of_torch_randperm():
    first = next(iter(EpochSampler(1000, 4, seed=5)))
    generator = torch.Generator().manual_seed(sampler.mix_entropy(5, 0))
    assert torch.equal(first, torch.randperm(1000, generator=generator)[:4])


@pytest.mark.parametrize("n", [1, 2, 3, 17, 1000, 4096, 4097])
def test_permutation_takes_every_place_once(n):
    for key in (0, 1):
        assert permuted_positions(torch.arange(n), n, key).sort().values.tolist() == list(range(n))


def test_permutations_of_different_keys_look_random_and_differ():
    n = 10_000
    first, second = (permuted_positions(torch.arange(n), n, key) for key in (0, 1))
    assert (first == second).sum() < 10 and (first == torch.arange(n)).sum() < 10
    for order in (first, second):
        centred = order.double() - order.double().mean()
        lags = [(centred[lag:] * centred[:-lag]).mean() / centred.square().mean() for lag in (1, 2, 3, 7, 100)]
        assert max(map(abs, lags)) < 0.05
        assert abs(torch.corrcoef(torch.stack([order.double(), torch.arange(n).double()]))[0, 1]) < 0.05
        halves = (order[: n // 2] < n // 2).sum()  # half of the first half come from each half
        assert abs(halves - n // 4) < 200


def test_wrong_arguments_of_the_sampler_are_refused():
    for wrong, message in (
        ({"n": 10.5}, "n must be an integer of at least 0, got 10.5"),
        ({"batch_size": True}, "batch_size must be an integer of at least 1, got True"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"shuffle": 1}, "shuffle must be True or False, got 1"),
        ({"rank": -1}, "rank must be an integer of at least 0, got -1"),
        ({"places": [1, 2, 3]}, r"places=\[1, 2, 3\] must be a tensor"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            EpochSampler(**{"n": 10, "batch_size": 2, **wrong})
