"""The images that are compared by their features: directions of unit length, with their places in the data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from superself.evaluation.extraction import Features


@dataclass(frozen=True, eq=False)
class Rows:
    """The readable rows of features.

    Args:
        directions: (n, D) float32 of unit length; all zeros where the features are.
        places: (n,) the row of each in what was given, on the CPU.
        total: number of rows that were given, N.
        paths: N file names, or None.
    """

    directions: Tensor
    places: Tensor
    total: int
    paths: list[str] | None

    def __len__(self) -> int:
        return len(self.places)

    def path(self, place: int) -> str | None:
        """The file name of row ``place`` of what was given."""
        return None if self.paths is None else self.paths[place]


def open_rows(given: Features | Any, role: str = "features", device: torch.device | str | None = None) -> Rows:
    """The rows that are not NaN, scaled to unit length.

    Args:
        given: Features, or a tensor or array (N, D).
        role: its name in messages.
        device: where the directions shall be; None: where the features are.
    Raises:
        TypeError: if it is anything else.
        ValueError: if it has another shape, no readable row, or values that are infinite.
    """
    values, paths = (given.features, given.paths) if isinstance(given, Features) else (given, None)
    if not isinstance(values, Tensor):
        if not hasattr(values, "__array__"):
            raise TypeError(
                f"{role} is a {type(given).__name__}; pass what features() or embed() returned, or a tensor (N, D)."
            )
        values = torch.as_tensor(values)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"{role} has the shape {tuple(values.shape)}; pass one row per image, (N, D).")
    values = values.detach().to(device=device, dtype=torch.float32)
    readable = ~values.isnan().any(dim=1)  # (N,)
    places = readable.nonzero().flatten().cpu()
    if len(places) == 0:
        raise ValueError(f"{role} has {len(values)} rows and none that is not NaN; pass at least one readable image.")
    total = len(values)
    values = values if len(places) == total else values[readable]
    if not values.isfinite().all():
        wrong = int((~values.isfinite().all(dim=1)).sum())
        raise ValueError(
            f"{role} is not finite in {wrong} of {total} rows; pass features of a network that has not diverged."
        )
    return Rows(F.normalize(values, dim=1), places, total, paths)


def places_of(indices: Any, rows: Rows, role: str) -> Tensor:
    """Which of the readable rows the ``indices`` (of what was given) are.

    Raises:
        ValueError: if there is no such row, or it is not readable.
    """
    wanted = torch.as_tensor(indices, device="cpu").flatten()
    if wanted.is_floating_point() or wanted.dtype == torch.bool:
        raise ValueError(f"{role} must hold row numbers, integers from 0 to {rows.total - 1}, got {wanted.dtype}.")
    wanted = wanted.long()
    found = torch.full((rows.total,), -1)
    found[rows.places] = torch.arange(len(rows))
    outside = wanted[(wanted < 0) | (wanted >= rows.total)]
    if len(outside):
        raise ValueError(
            f"{role} holds the row {outside[0]}, and there are {rows.total}; pass numbers from 0 to {rows.total - 1}."
        )
    unreadable = wanted[found[wanted] < 0]
    if len(unreadable):
        raise ValueError(f"{role} holds the row {unreadable[0]}, which is NaN (an unreadable image); leave it out.")
    return found[wanted]
