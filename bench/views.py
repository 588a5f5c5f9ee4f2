"""Views a second of the SimCLR recipe: ours in batches, torchvision's and lightly's image by image with all cores.

    python -m bench.views [--sizes 32 96 224] [--rounds 5] [--device cpu]

All in one run, in turn, medians. "CPU us" is the processor time that a view costs, whoever else uses the machine.
lightly is measured where it is installed; of torchvision the better of bytes and Pillow pictures counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from superself.augment.noise import kernel_for
from superself.augment.recipes import normalized, simclr
from superself.data import photos

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
SOURCE = {32: 32, 96: 96, 224: 256}  # pixels of the stored images for views of a size
BATCH = {32: 512, 96: 256, 224: 64}
STATISTICS = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


class PerImageDataset(Dataset):
    """``length`` views, made one by one of the images."""

    def __init__(self, images: list, transform: Callable, length: int) -> None:
        self.images, self.transform, self.length = images, transform, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int):
        return self.transform(self.images[i % len(self.images)])


def torchvision_simclr(size: int) -> Callable:
    """SimCLR's views with torchvision v2, of byte tensors or Pillow pictures."""
    steps = [
        v2.RandomResizedCrop(size, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
        v2.RandomGrayscale(0.2),
    ]
    if size > 32:
        steps.append(v2.RandomApply([v2.GaussianBlur(kernel_for(size), (0.1, 2.0))], 0.5))
    return v2.Compose([*steps, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*STATISTICS)])


def lightly_simclr(size: int) -> Callable | None:
    """lightly's SimCLRTransform (two views a call), or None where lightly is missing."""
    try:
        from lightly.transforms import SimCLRTransform
    except ImportError:
        return None
    return SimCLRTransform(input_size=size, cj_strength=1.0, gaussian_blur=0.5 if size > 32 else 0.0)


class Ours:
    """The recipe on a whole batch on the device, from its bytes there."""

    def __init__(self, images: torch.Tensor, size: int, device: str, threads: int) -> None:
        self.transform, self.threads = normalized(simclr(size, strength=1.0), *STATISTICS), threads
        self.images = images.repeat(-(-BATCH[size] // len(images)), 1, 1, 1)[: BATCH[size]].to(device)
        self.calls, self.wait = 4, torch.cuda.synchronize if device.startswith("cuda") else lambda: None

    def cpu_cost(self) -> float:
        """Processor seconds a view."""
        torch.set_num_threads(self.threads)
        start = time.process_time()
        self.transform(self.images)
        self.wait()
        return (time.process_time() - start) / len(self.images)

    def rate(self) -> float:
        """Views a second."""
        torch.set_num_threads(self.threads)
        start = time.perf_counter()
        for _ in range(self.calls):
            self.transform(self.images)
        self.wait()
        return self.calls * len(self.images) / (time.perf_counter() - start)


class PerImage:
    """A transform of single images in the workers of a loader, one a core."""

    def __init__(self, images: list, transform: Callable, views: int, size: int) -> None:
        self.views, self.length = views, 64 * max(2 * (CORES), 2048 // size)
        self.data = PerImageDataset(images, transform, self.length)
        self.loader = DataLoader(self.data, 64, num_workers=CORES, persistent_workers=True)
        self.rate()  # starts the workers

    def cpu_cost(self) -> float:
        torch.set_num_threads(1)  # as in a loader's worker
        start = time.thread_time()
        for i in range(64):
            self.data[i]
        return (time.thread_time() - start) / 64 / self.views

    def rate(self) -> float:
        start = time.perf_counter()
        for _ in self.loader:
            pass
        return self.views * self.length / (time.perf_counter() - start)


def measure(size: int, rounds: int, device: str) -> dict[str, tuple[float, float, float, float]]:
    """For each contender the median, smallest and largest views a second, and the median processor seconds a view."""
    images = photos("train", SOURCE.get(size, size), 256).sample(256)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    contenders = {
        "superself": Ours(images, size, device, CORES),
        "superself, one core": Ours(images, size, device, 1),
        "torchvision v2, bytes": PerImage(list(images), torchvision_simclr(size), 1, size),
        "torchvision v2, Pillow": PerImage(pictures, torchvision_simclr(size), 1, size),
    }
    if lightly := lightly_simclr(size):
        contenders["lightly, Pillow"] = PerImage(pictures, lightly, 2, size)
    rates, costs = ({name: [] for name in contenders} for _ in range(2))
    for _ in range(rounds):
        for name, contender in contenders.items():
            rates[name].append(contender.rate())
            costs[name].append(contender.cpu_cost())
    return {name: (statistics.median(r), min(r), max(r), statistics.median(costs[name])) for name, r in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 96, 224])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    print(f"{CORES} cores, torch {torch.__version__}, {arguments.device}")
    print(f"{'pixels':>6}  {'':24}{'views/s':>9}  {'min - max':>17}  {'CPU us':>8}  {'ratio':>6}  {'CPU ratio':>9}")
    for size in arguments.sizes:
        BATCH.setdefault(size, 128)
        results = measure(size, arguments.rounds, arguments.device)
        ours = results["superself"]
        for name, (rate, low, high, cost) in results.items():
            print(
                f"{size:>6}  {name:24}{rate:>9.0f}  {low:>8.0f} -{high:>7.0f}  {1e6 * cost:>8.0f}"
                f"  {ours[0] / rate:>6.1f}  {cost / ours[3]:>9.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
