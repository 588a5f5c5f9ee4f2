"""The checksum of an embedding: a few features of a fixed batch, by which a loaded backbone is compared with the exported one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from superself.basics.random import preserve_random_state
from superself.data import Preprocessing
from superself.networks import pooled_features
from superself.networks.modes import device_of, evaluation_mode

KEPT = 32  # features of each image in the checksum
TOLERANCE = (
    1e-3  # of the root mean square of the features: other processors round differently, other networks differ more
)


def fixed_batch(shape: tuple[int, int, int], count: int = 2) -> Tensor:
    """Images (count, C, H, W) in [0, 1] that are the same everywhere: waves in x and y that differ by channel and image."""
    channels, height, width = shape
    number = torch.arange(1, count * channels + 1, dtype=torch.float64).view(count, channels, 1, 1)
    y = torch.linspace(0, 1, height, dtype=torch.float64).view(-1, 1)
    x = torch.linspace(0, 1, width, dtype=torch.float64)
    waves = torch.sin(7 * y * number + 3 * x) + torch.sin(11 * x * number + 5 * y + number)
    return (waves / 4 + 0.5).float()


def preprocessed_batch(preprocessing: Preprocessing | None, shape: tuple[int, int, int]) -> Tensor:
    """The fixed batch as a backbone takes it: normalised, and with Sobel derivatives where it was trained on these.

    Args:
        preprocessing: of the backbone; None for a backbone without.
        shape: (C, H, W) of the batch where there is no preprocessing.
    """
    if preprocessing is None:
        return fixed_batch(shape)
    images = fixed_batch(preprocessing.shape)
    read = preprocessing.for_raw_images(False)
    return read(images * _column(preprocessing.std) + _column(preprocessing.mean))  # in the range of the images


def features_of_batch(backbone: nn.Module, batch: Tensor) -> Tensor:
    """The pooled features (B, D) of a batch, on the CPU, in evaluation mode and in float32; changes nothing."""
    device = device_of(backbone)
    no_autocast = torch.autocast(device.type, enabled=False)
    with preserve_random_state(seed=0), torch.no_grad(), evaluation_mode(backbone), no_autocast:
        return pooled_features(backbone, batch.to(device)).float().cpu()


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, so that a file with a flipped bit is noticed."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if not isinstance(tensors[name], Tensor):
            continue
        values = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def embedding_checksum(features: Tensor) -> dict[str, Any]:
    """Plain values by which features (B, D) are recognised: their shape, root mean square, and every few of them."""
    step = max(1, features.shape[1] // KEPT)
    return {
        "shape": list(features.shape),
        "rms": float(features.double().square().mean().sqrt()),
        "every": step,
        "values": features[:, ::step].tolist(),
    }


def embedding_difference(features: Tensor, checksum: dict[str, Any]) -> float:
    """The largest difference between features (B, D) and those of a checksum, in units of their root mean square.

    Infinity if there are other numbers of features.
    """
    if list(features.shape) != list(checksum["shape"]):
        return float("inf")
    difference = (features[:, :: checksum["every"]] - torch.tensor(checksum["values"])).abs().max()
    return float(difference) / max(checksum["rms"], 1e-12)


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)  # (C, 1, 1)
