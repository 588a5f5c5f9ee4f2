"""The order of the images is the seed's and the epoch's alone; memory, disk and workers give the same batches."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from superself.data import BatchLoader, EpochSampler, SequentialBatches, open_images


class Noisy(Dataset):
    """Items that differ at each read, by all three random sources."""

    def __len__(self):
        return 12

    def __getitem__(self, place):
        noise = [random.random(), np.random.random(), float(torch.rand(()))]
        return torch.tensor(noise).view(3, 1, 1).expand(3, 2, 2), place


def add_one(items):
    images, targets = zip(*items, strict=True)
    return torch.stack(images).int() + 1, list(targets)


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
    with pytest.raises(ValueError, match="batch_size=0 gives empty batches"):
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
        for (images, index), (other_images, other_index) in batches:
            assert torch.equal(images, other_images) and torch.equal(index, other_index)
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
    assert torch.equal(torch.cat([batch for batch, _ in loader]), images.batch(range(6)).images)


def test_random_items_depend_on_the_batch_not_on_the_workers_or_a_resume():
    def run(workers, start=0):
        loader = BatchLoader(open_images(Noisy()), EpochSampler(12, 3), num_workers=workers)
        loader.sampler.set_epoch(1, start)
        return [images for images, _ in loader]

    whole = run(1)
    assert all(torch.equal(a, b) for a, b in zip(whole, run(2), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], run(2, start=2), strict=True))
    assert len({float(value) for images in whole for value in images[:, :, 0, 0].flatten()}) == 36


def test_labels_come_when_they_are_asked_for(folder):
    labelled = open_images([(torch.zeros(1, 4, 4), i % 2) for i in range(5)])
    for images in (labelled, labelled.load()):
        batches = [label.tolist() for _, label in BatchLoader(images, SequentialBatches(5, 2), target="label")]
        assert batches == [[0, 1], [0, 1], [0]]
    with pytest.raises(ValueError, match="the data set has no labels .*imagefolder:PATH"):
        next(iter(BatchLoader(open_images(torch.zeros(4, 1, 4, 4)), SequentialBatches(4, 2), target="label")))
    with pytest.raises(ValueError, match="target='class' is unknown"):
        BatchLoader(labelled, SequentialBatches(5, 2), target="class")


@pytest.mark.parametrize("workers", [0, 2])
def test_collate_fn_gets_single_items(workers):
    images = open_images(torch.arange(5).byte().view(5, 1, 1, 1))
    loader = BatchLoader(images, SequentialBatches(5, 2), num_workers=workers, collate_fn=add_one)
    assert [(batch.flatten().tolist(), places) for batch, places in loader] == [
        ([1, 2], [0, 1]),
        ([3, 4], [2, 3]),
        ([5], [4]),
    ]
