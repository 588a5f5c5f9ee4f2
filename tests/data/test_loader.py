"""The order of the images depends on seed and epoch alone; memory, disk and workers give the same batches."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, default_collate

import superself
from superself.data import BatchLoader, EpochSampler, SequentialBatches, open_images


class Noisy(Dataset):
    """Items that differ at each read, by all three random sources."""

    def __len__(self):
        return 12

    def __getitem__(self, place):
        noise = [random.random(), np.random.random(), float(torch.rand(()))]
        return torch.tensor(noise).view(3, 1, 1).expand(3, 2, 2), place


def add_one(items):
    return torch.stack([image for image, *_ in items]).int() + 1


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (12, 4), (5, 5), (7, 1)])
def test_every_image_is_seen_and_every_batch_is_full(n, batch_size):
    batches = list(EpochSampler(n, batch_size))
    assert len(batches) == len(EpochSampler(n, batch_size)) == math.ceil(n / batch_size)
    assert all(len(batch) == batch_size for batch in batches)
    places = torch.cat(batches)
    assert sorted(places[:n].tolist()) == list(range(n))
    assert torch.equal(places[n:], places[: len(places) - n])


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = EpochSampler(50, 10, seed=seed)
        sampler.set_epoch(epoch)
        return torch.cat(list(sampler)).tolist()

    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert torch.cat(list(EpochSampler(10, 5, shuffle=False))).tolist() == list(range(10))


def test_resumed_epoch_goes_on_where_it_was():
    sampler = EpochSampler(50, 8)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.set_epoch(2, start=3)
    for left, right in zip(sampler, whole[3:], strict=True):
        assert torch.equal(left, right)


def test_batches_that_cannot_be_are_refused():
    with pytest.raises(
        ValueError, match=r"batch_size=8 is larger than the data set \(5 images\).*pass batch_size <= 5"
    ):
        EpochSampler(5, 8)
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, got 0 .*gives empty batches"):
        EpochSampler(5, 0)


def test_only_the_given_places_are_taken():
    places = torch.tensor([3, 4, 8, 11, 12])
    sampler = EpochSampler(13, 2, seed=1, places=places)
    orders = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        orders.append(torch.cat(list(sampler)))
        assert len(sampler) == 3 and orders[-1][:5].sort().values.tolist() == places.tolist()
        assert orders[-1][5] == orders[-1][0]
        everything = EpochSampler(5, 2, seed=1)
        everything.set_epoch(epoch)
        assert torch.equal(orders[-1], places[torch.cat(list(everything))])
    assert not torch.equal(*orders)
    assert torch.cat(list(EpochSampler(13, 5, shuffle=False, places=places))).tolist() == places.tolist()
    with pytest.raises(ValueError, match=r"\(5 of 13 images are trained on\).*pass batch_size <= 5"):
        EpochSampler(13, 6, places=places)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("n", [16, 13])
def test_ranks_share_the_batches_of_a_single_process(n, world_size):
    whole = EpochSampler(n, 8, seed=3)
    ranks = [EpochSampler(n, 8, seed=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    for sampler in (whole, *ranks):
        sampler.set_epoch(2)
    assert {len(sampler) for sampler in (whole, *ranks)} == {2}
    for batch, *shares in zip(whole, *ranks, strict=True):
        assert torch.equal(batch, torch.cat(shares))
        assert {len(share) for share in shares} == {8 // world_size}
    places = torch.cat([batch for sampler in ranks for batch in sampler])
    assert places.unique().tolist() == list(range(n)) and len(places) == 16
    for sampler in (whole, *ranks):
        sampler.set_epoch(2, start=1)
    assert torch.equal(torch.cat(list(whole)), torch.cat([batch for sampler in ranks for batch in sampler]))


def test_batch_that_ranks_cannot_share_equally_is_refused():
    with pytest.raises(
        ValueError, match="batch_size=10 cannot be divided equally among 4 processes; pass a multiple of 4"
    ):
        EpochSampler(40, 10, world_size=4)
    with pytest.raises(ValueError, match="rank=4 is not one of 4 processes"):
        EpochSampler(40, 8, rank=4, world_size=4)


def test_places_may_change_between_epochs():
    sampler = EpochSampler(13, 2, seed=1)
    places = torch.tensor([3, 4, 8])
    sampler.set_places(places)
    fresh = EpochSampler(13, 2, seed=1, places=places)
    assert len(sampler) == 2 and torch.equal(torch.cat(list(sampler)), torch.cat(list(fresh)))
    sampler.set_places(None)
    assert torch.equal(torch.cat(list(sampler)), torch.cat(list(EpochSampler(13, 2, seed=1))))
    with pytest.raises(ValueError, match="pass batch_size <= 1"):
        sampler.set_places(torch.tensor([3]))
    with pytest.raises(ValueError, match=r"places go from 3 to 13 in a data set of 13 images"):
        sampler.set_places(torch.tensor([3, 13]))


def test_weights_are_the_frequencies_with_which_images_are_drawn():
    weights = torch.tensor([0.0, 1.0, 2.0, 5.0, 0.0])
    sampler = EpochSampler(5, 5, seed=1)
    sampler.set_weights(weights)
    counts = torch.zeros(5)
    for epoch in range(2000):
        sampler.set_epoch(epoch)
        (batch,) = sampler
        counts += torch.bincount(batch, minlength=5)
    torch.testing.assert_close(counts / counts.sum(), weights / weights.sum(), atol=0.02, rtol=0)
    assert counts[0] == counts[4] == 0
    sampler.set_places(torch.tensor([0, 1, 2, 3, 3]))
    assert 0 not in torch.cat(list(sampler))
    sampler.set_places(torch.tensor([0, 0, 0, 4, 4]))
    with pytest.raises(ValueError, match="all places have weight 0"):
        list(sampler)


def test_weighted_order_depends_on_seed_epoch_places_and_weights_alone():
    def order(seed=0, epoch=3, weights=None, ranks=1):
        samplers = [EpochSampler(50, 10, seed=seed, rank=rank, world_size=ranks) for rank in range(ranks)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
            sampler.set_weights(torch.arange(50.0) if weights is None else weights)
        return torch.cat([torch.cat(shares) for shares in zip(*samplers, strict=True)]).tolist()

    assert order() == order() == order(ranks=2)
    others = [order(seed=1), order(epoch=4), order(weights=torch.ones(50))]
    assert order() not in others and len({tuple(other) for other in others}) == 3


def test_sampler_goes_on_with_the_places_and_weights_of_its_state(tmp_path):
    sampler, again = EpochSampler(13, 2, seed=1), EpochSampler(13, 2, seed=1)
    for places, weights in ((None, None), (torch.tensor([3, 4, 8]), None), (torch.tensor([3, 4]), torch.arange(13.0))):
        sampler.set_places(places)
        sampler.set_weights(weights)
        torch.save(sampler.state_dict(), tmp_path / "state.pt")
        again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert torch.equal(torch.cat(list(sampler)), torch.cat(list(again)))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(4), r"weights of shape \(4,\) for 5 images; pass one weight per image"),
        (torch.tensor([1.0, -1, 0, 0, 0]), "weights must be finite and at least 0"),
        (torch.tensor([1.0, float("nan"), 0, 0, 0]), "weights must be finite and at least 0"),
        (torch.zeros(5), "all weights are 0"),
    ],
)
def test_weights_that_cannot_be_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        EpochSampler(5, 2).set_weights(weights)


def test_sequential_batches_leave_no_image_out():
    assert [batch.tolist() for batch in SequentialBatches(5, 2)] == [[0, 1], [2, 3], [4]]
    assert len(SequentialBatches(5, 2)) == 3


def test_workers_and_memory_give_the_same_batches_and_find_the_same_broken_files(folder):
    path = folder(45, broken=[11])
    (path / "020.png").write_bytes((path / "020.png").read_bytes()[:120])  # found only when it is decoded
    memory, disk = open_images(path).load(), open_images(path)
    loaders = [BatchLoader(images, EpochSampler(45, 8), num_workers=2) for images in (memory, disk)]
    before = torch.get_rng_state()
    for epoch in range(2):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        batches = list(zip(*loaders, strict=True))
        assert len(batches) == len(loaders[0]) == 6
        for ours, theirs in batches:
            assert torch.equal(ours.images, theirs.images) and torch.equal(ours.index, theirs.index)
    assert memory.skipped == disk.skipped and len(disk.skipped) == 2
    assert torch.equal(before, torch.get_rng_state())


def test_too_many_broken_files_found_in_workers_stop_the_run(folder):
    path = folder(20)
    for name in ("003.png", "004.png"):
        (path / name).write_bytes((path / name).read_bytes()[:120])
    with pytest.raises(ValueError, match="2 of 20 images cannot be read, more than 5%"):
        list(BatchLoader(open_images(path), SequentialBatches(20, 4), num_workers=1))


def test_loader_can_be_sent_to_a_spawned_process(folder):
    images = open_images(folder(6))
    loader = BatchLoader(images, SequentialBatches(6, 3), num_workers=1)
    loader._loader.multiprocessing_context = "spawn"
    assert torch.equal(torch.cat([batch.images for batch in loader]), images.batch(range(6)).images)


SCRIPT_WITHOUT_GUARD = """
import sys
import torch
torch.multiprocessing.set_start_method("spawn", force=True)
from superself.data import BatchLoader, SequentialBatches, open_images
list(BatchLoader(open_images(sys.argv[1]), SequentialBatches(2, 2), num_workers=1))
"""


@pytest.mark.slow
def test_spawned_workers_of_a_script_without_main_guard_are_explained(folder, tmp_path):
    path = folder(2)
    (tmp_path / "script.py").write_text(SCRIPT_WITHOUT_GUARD)
    environment = {**os.environ, "PYTHONPATH": str(Path(superself.__file__).parent.parent)}
    command = [sys.executable, str(tmp_path / "script.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: worker processes import the script again") and "__main__" in last, done.stderr


def test_random_items_depend_on_the_batch_not_on_the_workers_or_a_resume():
    def run(workers, start=0):
        loader = BatchLoader(open_images(Noisy()), EpochSampler(12, 3), num_workers=workers)
        loader.sampler.set_epoch(1, start)
        return [batch.images for batch in loader]

    whole = run(1)
    assert all(torch.equal(a, b) for a, b in zip(whole, run(2), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], run(2, start=2), strict=True))
    assert len({float(value) for images in whole for value in images[:, :, 0, 0].flatten()}) == 36


def test_targets_come_with_the_images_from_memory_and_from_items():
    labelled = open_images([(torch.zeros(1, 4, 4), i % 2) for i in range(5)])
    for images in (labelled, labelled.load()):
        batches = [target.tolist() for _, target in BatchLoader(images, SequentialBatches(5, 2))]
        assert batches == [[0, 1], [0, 1], [0]]
    (batch,) = BatchLoader(open_images(torch.zeros(4, 1, 4, 4)), SequentialBatches(4, 4))
    assert batch.target is None and batch.index.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_collate_fn_gets_single_items(workers):
    images = open_images(torch.arange(5).byte().view(5, 1, 1, 1))
    loader = BatchLoader(images, SequentialBatches(5, 2), num_workers=workers, collate_fn=add_one)
    batches = [(batch.images.flatten().tolist(), batch.index.tolist()) for batch in loader]
    assert batches == [([1, 2], [0, 1]), ([3, 4], [2, 3]), ([5], [4])]


def keep_one(items):
    return torch.stack([image for image, *_ in items])[:1], [7]


def test_collate_fn_that_returns_other_images_gets_no_index_filled_in():
    images = open_images([(torch.zeros(1, 4, 4), place) for place in range(4)])
    for opened in (images, images.load()):
        (batch,) = BatchLoader(opened, SequentialBatches(4, 4), collate_fn=keep_one)
        assert batch.target.tolist() == [7] and batch.index is None


def describe(items):
    return {"image": torch.stack([item.image for item in items]), "target": [f"{item.target}" for item in items]}


def test_target_of_the_collate_fn_is_kept_and_the_index_filled_in():
    images = open_images([(torch.zeros(1, 4, 4), place + 5) for place in range(4)])
    for opened in (images, images.load()):
        (batch,) = BatchLoader(opened, SequentialBatches(4, 4), collate_fn=describe)
        assert batch.target == ["5", "6", "7", "8"] and batch.index.tolist() == [0, 1, 2, 3]


def test_default_collate_is_what_the_loader_does_already():
    (batch,) = BatchLoader(open_images(torch.zeros(4, 1, 4, 4)), SequentialBatches(4, 4), collate_fn=default_collate)
    assert batch.images.shape == (4, 1, 4, 4) and batch.target is None
