"""Batches of images, which are the same from memory and from disk."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from superself.basics.random import seed_everything
from superself.basics.validate import require_count, require_positive
from superself.data.batch import Batch, stack_targets
from superself.data.images import Images
from superself.data.sampler import mix_entropy
from superself.data.sources import available_cores
from superself.training.interrupt import leave_signals_to_parent

WORKER_TIMEOUT = 600  # seconds that a batch may take in a worker process
SIGNAL_SECONDS = 0.5  # after which the system has reported a process that died
POLL_SECONDS = 1  # how often a wait for a worker is interrupted to look for signals


class BatchLoader:
    """Yields a ``Batch`` for each batch of places: by indexing if the images are in memory, else from worker processes.

    Args:
        images: the data set.
        batches: the places of each batch, as ``EpochSampler`` or ``SequentialBatches`` yields them.
        num_workers: number of decoding processes. 0 means one per core for files, and none for a torch Dataset.
            Images in memory need none, unless ``collate_fn`` is given.
        collate_fn: makes a batch of a list of ``Item``, in the workers. What it returns is converted by
            ``Batch.from_loader``. If it returns as many images as it received, an index or a target that it omits is
            taken from the items, in their order.
        pin_memory: whether batches are in page-locked memory if there is a GPU, which makes copies to it faster.
        timeout: seconds that a batch may take in a worker process; None takes ``WORKER_TIMEOUT`` of this module, 10 minutes.
    Shape:
        yields ``Batch``.
    Raises:
        RuntimeError: while iterating, if a worker hangs, or was stopped from outside.
    """

    while_waiting: Callable[[], None] | None = None  # called about once a second while a batch is not ready; may raise

    def __init__(
        self,
        images: Images,
        batches: Iterable[Tensor],
        num_workers: int = 0,
        collate_fn: Callable[[list], Any] | None = None,
        pin_memory: bool = False,
        timeout: float | None = None,
    ) -> None:
        require_count("num_workers", num_workers, "is the number of decoding processes", minimum=0)
        if collate_fn is not None and not callable(collate_fn):
            raise TypeError(f"collate_fn={collate_fn!r} cannot be called; pass a function of a list of items.")
        self.timeout = WORKER_TIMEOUT if timeout is None else timeout
        require_positive("timeout", self.timeout, "is the number of seconds that a batch may take in a worker process")
        collate_fn = None if collate_fn is default_collate else collate_fn  # which cannot stack a missing target
        self.images, self.sampler = images, batches
        self._numbered, self._fetch = _NumberedBatches(batches), _Fetch(images, collate_fn)
        self._pin = pin_memory and torch.cuda.is_available()
        plain = collate_fn is None
        if plain and images.in_memory:
            self._loader = None
            return
        if num_workers == 0 and images.paths is not None and not images.in_memory:
            num_workers = max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))  # of torchrun
        self._loader = DataLoader(
            self._fetch,
            batch_sampler=self._numbered,
            num_workers=num_workers,
            timeout=min(POLL_SECONDS, self.timeout) if num_workers else 0,
            collate_fn=_identity,
            pin_memory=self._pin,
            worker_init_fn=leave_signals_to_parent,
            generator=torch.Generator(),  # a separate one: loading leaves the random state of the run unchanged
            # Workers that draw random numbers are restarted each epoch, since they receive the epoch when they start.
            persistent_workers=num_workers > 0 and plain and images.paths is not None,
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def peek(self) -> Batch:
        """A batch like those to come, without moving on; made in this process."""
        return self._fetch.__getitems__((None, next(iter(self.sampler))))

    def __iter__(self) -> Iterator[Batch]:
        self._fetch.entropy = (getattr(self.sampler, "seed", 0), getattr(self.sampler, "epoch", 0))
        self._numbered.number = self.images.begin_pass()
        in_process = self._loader is None
        batches = map(self._fetch.__getitems__, self._numbered) if in_process else self._batches_of_workers()
        for batch in batches:
            if self._numbered.pending:  # another iterator over this loader clears it
                self._numbered.pending.popleft()
            self.images.report_broken(batch.broken)
            yield batch.pin_memory() if self._pin and in_process else batch

    def _batches_of_workers(self) -> Iterator[Batch]:
        try:
            batches = iter(self._loader)
            while True:
                try:
                    batch = self._next_batch(batches)
                except StopIteration:
                    return
                yield batch
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            if self._start_method == "fork" or "pickle" not in str(error).lower():
                raise
            raise TypeError(
                f"the data set or the collate_fn cannot be sent to worker processes, which are started by {self._start_method!r} "
                f"here ({error}); define functions and classes with def and class at the top level of a module, not as a "
                "lambda or within a function."
            ) from error
        except (RuntimeError, ConnectionError, EOFError) as error:  # the last two: it died while it sent a batch
            raise self._explained(error) from error

    def _next_batch(self, batches: Iterator[Batch]) -> Batch:
        """The next batch of the workers; interrupts the wait to call ``while_waiting``, and ends it after ``timeout``."""
        began = time.monotonic()
        while True:
            try:
                return next(batches)
            except RuntimeError as error:
                if "DataLoader timed out" not in str(error):
                    raise
            if self.while_waiting is not None:
                self.while_waiting()
            waited = time.monotonic() - began
            if waited >= self.timeout:
                raise TimeoutError(
                    f"a worker process has not made a batch for {waited:.0f} s, that of the places "
                    f"{_shortened(self._numbered.pending[0])}: the data set, read= or collate_fn hangs, or the drive does not "
                    "answer; repair it, or set superself.data.loader.WORKER_TIMEOUT to more seconds."
                )

    @property
    def _start_method(self) -> str:
        return (self._loader.multiprocessing_context or multiprocessing).get_start_method()

    def _explained(self, error: Exception) -> Exception:
        """What the error of a worker means, if it is known."""
        text = str(error)
        if not isinstance(error, RuntimeError) and not text.startswith(
            "Caught "
        ):  # which is how a worker's own error begins
            text = f"a worker is killed by signal or lost: {type(error).__name__}: {text}"
            try:
                time.sleep(SIGNAL_SECONDS)
            except (
                RuntimeError
            ) as report:  # torch's own, from its signal handler, which would interrupt something else later
                text = str(report)
        stopped = "a worker process was stopped from outside, most often by the system for lack of memory"
        advice = "pass a smaller num_workers= or image_size=, or give the job more memory"
        in_worker = "bootstrapping phase" in text
        died = "killed by signal" in text or "exited unexpectedly" in text
        if in_worker or (died and "killed by signal" not in text and self._start_method != "fork"):
            return RuntimeError(
                "worker processes import the script again where they are spawned, and this script starts training on "
                'import; put the code that trains below `if __name__ == "__main__":`. If it is there already, '
                f"{stopped}: {advice}."
            )
        return RuntimeError(f"{stopped} ({text.strip()}); {advice}.") if died else error


class _NumberedBatches:
    """The places of each batch with the number of the pass, so that workers notice when one begins."""

    def __init__(self, sampler: Iterable[Tensor]) -> None:
        self.sampler, self.number = sampler, 0
        self.pending: deque[Tensor] = deque()  # the places of batches that were asked for

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        self.pending.clear()
        for places in self.sampler:
            self.pending.append(places)
            yield self.number, places


class _Fetch(Dataset):
    """Makes the Batch for given places, in this process or in a worker."""

    def __init__(self, images: Images, collate_fn: Callable[[list], Any] | None) -> None:
        self.images, self.collate_fn = images, collate_fn
        self.entropy = (0, 0)

    def __getitems__(self, numbered: tuple[int | None, Tensor]) -> Batch:
        number, places = numbered
        if number is not None:
            self.images.begin_pass(number)
        if get_worker_info() is not None:
            # Random transforms of users depend on seed, epoch and batch, not on the number of workers or on resuming.
            seed_everything(mix_entropy(*self.entropy, int(places[0])))
        if self.collate_fn is None:
            return self.images.batch(places)
        items, broken = self.images.items(places)
        batch = Batch.from_loader(self.collate_fn(items))
        batch.broken = {**batch.broken, **broken}
        if len(batch) == len(items):
            if batch.index is None:
                batch.index = torch.tensor([item.index for item in items], dtype=torch.int64)
            if batch.target is None:
                batch.target = stack_targets([item.target for item in items])
        return batch


def _identity(batch: Any) -> Any:
    return batch


def _shortened(places: Tensor) -> str:
    first = ", ".join(map(str, places[:8].tolist()))
    return f"{first}, ..." if len(places) > 8 else first
