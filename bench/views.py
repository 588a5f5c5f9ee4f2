"""Contestants for views of SimCLR: superself in batches, torchvision and lightly image by image on all cores."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from superself.augment.filters import blur_kernel_size
from superself.augment.recipes import normalized, simclr
from superself.data.sources import available_cores

CORES = available_cores()
SOURCE = {32: 32, 96: 96, 224: 256}  # size of views -> size of the stored images, in pixels
BATCH = {32: 512, 96: 256, 224: 64}
STATISTICS = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


class PerImageDataset(Dataset):
    """``length`` views of the images, made one by one."""

    def __init__(self, images: list, transform: Callable, length: int) -> None:
        self.images, self.transform, self.length = images, transform, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int):
        return self.transform(self.images[i % len(self.images)])


def torchvision_simclr(size: int) -> Callable:
    """SimCLR's views with torchvision v2, from byte tensors or Pillow images."""
    steps = [
        v2.RandomResizedCrop(size, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
        v2.RandomGrayscale(0.2),
    ]
    if size > 32:
        steps.append(v2.RandomApply([v2.GaussianBlur(blur_kernel_size(size), (0.1, 2.0))], 0.5))
    return v2.Compose([*steps, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*STATISTICS)])


def lightly_simclr(size: int) -> Callable | None:
    """lightly's SimCLRTransform (two views per call), or None if lightly is not installed."""
    try:
        from lightly.transforms import SimCLRTransform
    except ImportError:
        return None
    return SimCLRTransform(input_size=size, cj_strength=1.0, gaussian_blur=0.5 if size > 32 else 0.0)


class Ours:
    """superself's recipe on a whole batch of bytes on the device."""

    def __init__(self, images: torch.Tensor, size: int, device: str, threads: int) -> None:
        self.transform, self.threads = normalized(simclr(size, strength=1.0), *STATISTICS), threads
        self.images = images.repeat(-(-BATCH[size] // len(images)), 1, 1, 1)[: BATCH[size]].to(device)
        self.calls, self.wait = 4, torch.cuda.synchronize if device.startswith("cuda") else lambda: None

    def cpu_cost(self) -> float:
        """Processor seconds per view."""
        torch.set_num_threads(self.threads)
        start = time.process_time()
        self.transform(self.images)
        self.wait()
        return (time.process_time() - start) / len(self.images)

    def rate(self) -> float:
        """Views per second."""
        torch.set_num_threads(self.threads)
        start = time.perf_counter()
        for _ in range(self.calls):
            self.transform(self.images)
        self.wait()
        return self.calls * len(self.images) / (time.perf_counter() - start)


class PerImage:
    """A transform of single images in the workers of a loader, one per core."""

    def __init__(self, images: list, transform: Callable, views: int, size: int) -> None:
        self.views, self.length = views, 64 * max(2 * CORES, 2048 // size)
        self.data = PerImageDataset(images, transform, self.length)
        self.loader = DataLoader(self.data, 64, num_workers=CORES, persistent_workers=True)
        self.rate()  # starts the workers

    def cpu_cost(self) -> float:
        """Processor seconds per view."""
        torch.set_num_threads(1)  # as in a loader's worker
        start = time.thread_time()
        for i in range(64):
            self.data[i]
        return (time.thread_time() - start) / 64 / self.views

    def rate(self) -> float:
        """Views per second."""
        start = time.perf_counter()
        for _ in self.loader:
            pass
        return self.views * self.length / (time.perf_counter() - start)
