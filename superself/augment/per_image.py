"""Any transform of single images, from torchvision, albumentations or your own code, run in the loader's workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from superself.data.batch import Batch, stack_targets


class PerImage:
    """A ``collate_fn`` that transforms each image separately and then stacks the batch.

    Pass it as ``collate_fn=PerImage(transform)``. If the transform returns one image, it takes the place of the original.
    If it returns a list, these are the views of the batch, which replace the algorithm's own augmentation, and the
    originals stay in ``images``. The loader seeds torch's, numpy's and Python's random numbers in each worker.

    Args:
        transform: a callable from one image to an image or to a list of views.
        takes: what it is given: "tensor" (C, H, W), "pil", or "array" (H, W, C) as albumentations wants it; such a
            callable is called with ``image=`` and may return a dictionary with that key.
    Shape:
        list of (image (C, H, W), index[, target[, mask]]) -> Batch with images (B, C, h, w) and, for lists, views.
    Raises:
        ValueError: if ``takes`` is unknown, or when called, if there are masks and the transform changes the size: masks
            are passed on as they are.
    """

    def __init__(self, transform: Callable[..., Any], takes: str = "tensor") -> None:
        if takes not in ("tensor", "pil", "array"):
            raise ValueError(f'takes={takes!r} is unknown; pass "tensor", "pil" or "array".')
        self.transform, self.takes = transform, takes

    def __call__(self, items: Sequence[tuple[Any, ...]]) -> Batch:
        columns = [list(column) for column in zip(*items, strict=True)]
        originals, index, targets, masks = columns + [[None] * len(items)] * (4 - len(columns))
        results = [self.transform_image(image) for image in originals]
        views = None
        if isinstance(results[0], list):
            images, views = torch.stack(originals), [torch.stack(view) for view in zip(*results, strict=True)]
        else:
            images = torch.stack(results)
        mask = None if masks[0] is None else torch.stack(masks)
        if mask is not None and mask.shape[-2:] != images.shape[-2:]:
            raise ValueError(
                f"PerImage does not move masks, but its transform turns images of size {tuple(mask.shape[-2:])} into "
                f"{tuple(images.shape[-2:])}; use transforms of superself.augment, which move masks, or no masks."
            )
        return Batch(images, torch.as_tensor(index), stack_targets(targets), mask, views)

    def transform_image(self, image: Tensor) -> Tensor | list[Tensor]:
        """The result, or the list of results, for one image (C, H, W), as tensors."""
        if self.takes == "tensor":
            result = self.transform(image)
        else:
            array = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
            if self.takes == "pil":
                result = self.transform(Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array))
            else:
                result = self.transform(image=array)
        result = result["image"] if isinstance(result, dict) else result
        return [as_tensor(view) for view in result] if isinstance(result, (list, tuple)) else as_tensor(result)


def as_tensor(image: Any) -> Tensor:
    """A tensor (C, H, W) from a tensor, an array (H, W[, C]) or a PIL image."""
    if isinstance(image, Tensor):
        return image
    array = np.array(image)
    return torch.from_numpy(array[:, :, None] if array.ndim == 2 else array).permute(2, 0, 1)
