"""A deterministic split into two parts, which depends on the files and not on their order."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from superself.basics.validate import require_count, require_fraction
from superself.data import Images, open_images, select_images
from superself.evaluation.extraction import Features


def split(data: Any, fraction: float = 2 / 3, seed: int = 0) -> tuple[Any, Any]:
    """Splits labelled or unlabelled images into two parts, for example to train a classifier and to test it.

    ``fraction=2/3`` gives 2 : 1, as patchwork splits labelled images; ``fraction=1/2`` gives 1 : 1, as self_supervised does.

    An image is identified by its file name below the folder that holds all images, or by its place in the data set where
    there are no files. The same files with the same labels are split in the same way in any order and in any folder. Each
    class has its fraction in the first part, to within one image, and so have all images together. Both parts keep the
    order of ``data``. A file that occurs several times is in one part only.

    Args:
        data: ``Features``, ``Images``, or anything else that ``open_images`` takes.
        fraction: of the first part.
        seed: another one gives another split.
    Returns:
        Two ``Features``, or two ``Images``.
    Raises:
        ValueError: if the fraction is not between 0 and 1, or a part would be empty.
    """
    require_fraction("fraction", fraction, "is the share of the first part", lower_open=True, upper_open=True)
    require_count("seed", seed, "chooses one of many splits", minimum=0)
    if not isinstance(data, Features):
        data = open_images(data)
    first = split_places(data.labels, data.paths, len(data), fraction, seed)  # (N,) bool
    if first.all() or not first.any():
        raise ValueError(
            f"fraction={fraction:.3g} of {len(data)} images leaves one part empty; pass more images or another fraction."
        )
    places = first.nonzero().flatten(), (~first).nonzero().flatten()
    if isinstance(data, Images):
        return select_images(data, places[0]), select_images(data, places[1])
    return data.rows(places[0]), data.rows(places[1])


def split_places(
    labels: Tensor | None, paths: list[str] | list[Path] | None, count: int, fraction: float, seed: int
) -> Tensor:
    """Which of ``count`` images are in the first part (N,) bool; see ``split``.

    All images are listed by class, and within a class by the hash of their names. Image i of this list is in the first part
    if floor((i + 1) fraction + u) is one more than floor(i fraction + u): every run of n images then has n fraction of them
    in the first part, to within one. u comes from the seed.
    """
    names = _names_below_common_folder(paths) if paths is not None else [str(place) for place in range(count)]
    keys = [hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest() for name in names]
    classes = [0] * count if labels is None or labels.ndim != 1 else labels.tolist()
    first_of = {}
    for place in range(count):  # a file that occurs again is left to its first class
        first_of[keys[place]] = min(first_of.get(keys[place], classes[place]), classes[place])
    listed = sorted(first_of, key=lambda key: (first_of[key], key))
    offset = int.from_bytes(hashlib.sha256(f"{seed}".encode()).digest()[:4], "big") / 2**32
    # A little is added, so that 3 * (1 / 3) is not below 1.
    steps = ((torch.arange(len(listed) + 1, dtype=torch.float64) * fraction) + offset + 1e-9).floor()
    is_first = dict(zip(listed, (steps.diff() > 0).tolist(), strict=True))
    return torch.tensor([is_first[key] for key in keys])


def _names_below_common_folder(paths: list[str] | list[Path]) -> list[str]:
    absolute = [os.path.abspath(path) for path in paths]
    root = os.path.commonpath([os.path.dirname(path) for path in absolute])
    return [os.path.relpath(path, root).replace(os.sep, "/") for path in absolute]
