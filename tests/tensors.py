"""Random tensors that tests of several files need."""

import torch


def seeded(seed: int = 0) -> torch.Generator:
    """A generator that starts from ``seed``."""
    return torch.Generator().manual_seed(seed)


def images_of(count: int, height: int = 30, width: int = 26) -> torch.Tensor:
    """Noise images (count, 3, height, width) in [0, 1], always the same."""
    return torch.rand(count, 3, height, width, generator=seeded(count))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normally distributed numbers, always the same."""
    return torch.randn(*shape, generator=seeded(seed))
