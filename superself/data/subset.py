"""A part of a data set as a data set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from superself.data.images import Images
from superself.data.sources import FileSource, ItemSource, TensorSource


def select_images(images: Images, places: Tensor) -> Images:
    """The images at ``places`` (n,), in that order, opened with the same options; their files are scanned again.

    Class names stay those of the whole data set.
    """
    source, numbers = images.source, places.tolist()
    if isinstance(source, FileSource):
        paths = [source.paths[place] for place in numbers]
        part = FileSource(
            paths, source.custom_read, _select(source.targets, numbers), source.classes, source.planes, source.left_out
        )
    elif isinstance(source, TensorSource):
        part = TensorSource(source.data[places], _select(source.targets, numbers), source.classes)
    else:
        part = ItemSource(Subset(source.items, numbers))
        part.classes = source.classes
    size = images.shape[1:] if images._resized else None
    return Images(part, size, images.on_bad_image, images.memory_limit, images.reading)


def _select(values: Any, numbers: list[int]) -> Any:
    if values is None:
        return None
    return values[torch.tensor(numbers)] if isinstance(values, Tensor) else [values[place] for place in numbers]
