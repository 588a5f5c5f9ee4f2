"""Any transform of single images, from torchvision, albumentations or one's own, run in the loader's workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from superself.data import Batch, Item


class PerImage:
    """A ``collate_fn`` that transforms every image by itself before it stacks the batch.

    Pass it as ``collate_fn=PerImage(transform)``. Torch's random state is seeded by the loader in each worker.

    Args:
        transform: a callable from one image to an image or to a list of views.
        takes: what it is given: "tensor" (C, H, W), "pil", or "array" (H, W, C) as albumentations wants it: such a
            callable gets ``image=`` and may return a dict.
    Shape:
        list of (image (C, H, W), target) -> images (B, C, h, w) or a list of them, targets (B,).
    Raises:
        ValueError: if ``takes`` is unknown.
    """

    def __init__(self, transform: Callable[..., Any], takes: str = "tensor") -> None:
        if takes not in ("tensor", "pil", "array"):
            raise ValueError(f'takes={takes!r} is unknown; pass "tensor", "pil" or "array".')
        self.transform, self.takes = transform, takes

    def __call__(self, items: Sequence[tuple[Tensor, Any]]) -> Batch | tuple[Tensor | list[Tensor], Tensor]:
        views = default_collate([self.one(image) for image, *_ in items])
        if isinstance(items[0], Item):
            return Batch.from_loader((views,))  # the loader fills in index and target
        return views, torch.as_tensor([int(target) for _, target in items])

    def one(self, image: Tensor) -> Tensor | list[Tensor]:
        """The view or the views of one image (C, H, W), as tensors."""
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
