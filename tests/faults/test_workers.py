"""Workers that hang, die, or cannot be started; data sets that lie about their length or have a thousand million items."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, _utils

from superself import RotateNetSupervisor
from superself.data import BatchLoader, EpochSampler, SequentialBatches, loader, open_images

from cases import TinyBackbone


class Misbehaving(Dataset):
    """Items of which number 9 does something else than returning an image."""

    def __init__(self, act, n=40):
        self.act, self.n = act, n

    def __len__(self):
        return self.n

    def __getitem__(self, place):
        if place == 9 and multiprocessing.parent_process() is not None:
            self.act()
        return torch.full((1, 2, 2), place, dtype=torch.uint8)


def hang():
    time.sleep(1000)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def quick_end(monkeypatch):
    """A hanging worker is ended at once rather than after five seconds."""
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.05)


def test_worker_that_hangs_ends_the_run_with_the_batch_and_what_to_do(quick_end):
    batches = BatchLoader(open_images(Misbehaving(hang)), SequentialBatches(40, 4), num_workers=1, timeout=0.5)
    seen = []
    began = time.monotonic()
    with pytest.raises(
        TimeoutError,
        match=r"not made a batch for \d+ s, that of the places 8, 9, 10, 11: .* hangs.*WORKER_TIMEOUT to more",
    ):
        for batch in batches:
            seen.append(batch.index[0].item())
    assert seen == [0, 4] and time.monotonic() - began < 10


def test_the_wait_for_a_worker_is_interrupted_to_look_for_signals(quick_end, monkeypatch):
    monkeypatch.setattr(loader, "POLL_SECONDS", 0.1)
    batches = BatchLoader(open_images(Misbehaving(hang)), SequentialBatches(40, 4), num_workers=1)
    calls = []

    def look():
        calls.append(time.monotonic())
        if len(calls) == 3:
            raise KeyboardInterrupt

    batches.while_waiting = look
    with pytest.raises(KeyboardInterrupt):
        list(batches)
    assert len(calls) == 3


def test_timeout_is_ten_minutes_unless_it_is_changed(monkeypatch):
    images = open_images(torch.zeros(4, 1, 2, 2))
    assert BatchLoader(images, SequentialBatches(4, 2)).timeout == 600
    monkeypatch.setattr(loader, "WORKER_TIMEOUT", 3600)
    assert BatchLoader(images, SequentialBatches(4, 2)).timeout == 3600


def slow():
    time.sleep(0.5)


def test_batch_that_takes_longer_than_a_poll_arrives_in_order(monkeypatch):
    monkeypatch.setattr(loader, "POLL_SECONDS", 0.05)
    batches = BatchLoader(open_images(Misbehaving(slow)), SequentialBatches(40, 4), num_workers=2)
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(40))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.thorough)])
def test_worker_that_is_killed_is_named_with_the_likely_reason(method):
    batches = BatchLoader(open_images(Misbehaving(die)), SequentialBatches(40, 4), num_workers=1)
    batches._loader.multiprocessing_context = method
    with pytest.raises(
        RuntimeError, match="stopped from outside, most often by the system for lack of memory.*num_workers="
    ):
        list(batches)


@pytest.mark.parametrize("what", ["data set", "collate_fn"])
def test_what_cannot_be_sent_to_spawned_workers_is_explained(what):
    data = Misbehaving(lambda: None) if what == "data set" else Misbehaving(die)
    collate = (lambda items: torch.stack([item.image for item in items])) if what == "collate_fn" else None
    batches = BatchLoader(open_images(data), SequentialBatches(40, 4), num_workers=1, collate_fn=collate)
    batches._loader.multiprocessing_context = "spawn"
    with pytest.raises(
        TypeError, match="cannot be sent to worker processes.*'spawn'.*lambda.*with def and class at the top"
    ):
        list(batches)


# ---- lengths -------------------------------------------------------------------------------------------------------------


class Endless(Dataset):
    """A thousand million images that are made on the fly."""

    def __len__(self):
        return 10**9

    def __getitem__(self, place):
        return torch.full((3, 16, 16), place % 251, dtype=torch.uint8)


def test_a_thousand_million_items_are_opened_and_trained_on_without_a_list_of_them():
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    images = open_images(Endless())
    assert (
        len(images.fingerprint) == 32
        and images.broken_places().tolist() == []
        and "1000000000 images" in images.describe()
    )
    assert images.load() is images and not images.in_memory and images.sample(4).shape == (4, 3, 16, 16)
    sampler = EpochSampler(10**9, 8, seed=3)
    batches = iter(BatchLoader(images, sampler))
    index = torch.cat([next(batches).index for _ in range(20)])
    assert index.unique().numel() == 160 and index.max() > 5 * 10**8
    assert len(next(iter(SequentialBatches(10**9, 8)))) == 8
    assert time.monotonic() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


class Stop(Exception):
    """Ends a run after some steps."""


def test_training_on_a_thousand_million_items_starts():
    class Short(RotateNetSupervisor):
        def _after_step(self):
            if self.run.step == 3:
                raise Stop

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Stop):
        Short(Endless(), backbone=TinyBackbone(), seed=0).supervise(epochs=1, batch_size=8, progress=False)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_length_that_is_too_large_is_an_error():
    class Lying(Dataset):
        def __len__(self):
            return 1000

        def __getitem__(self, place):
            if place >= 990:
                raise IndexError("list index out of range")
            return torch.zeros(1, 2, 2)

    with pytest.raises(
        ValueError, match=r"has len\(\) 1000, but its last item, 999, raises an IndexError .*correct its __len__"
    ):
        open_images(Lying())


def test_single_item_with_an_index_error_is_a_broken_image():
    class Faulty(Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, place):
            return torch.zeros(1, 2, 2) if place != 7 else np.zeros(3)[5]

    assert open_images(Faulty()).batch([7]).index.tolist() == [8]
