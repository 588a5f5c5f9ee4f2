"""What losses of two views need to be given."""

from __future__ import annotations

from torch import Tensor

from superself.basics.distributed import world_size


def require_pairs(first: Tensor, second: Tensor) -> None:
    """Checks that two views have embeddings (B, D) of the same shape, of two images or more in all processes together.

    Raises:
        ValueError: if they have not.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(
            f"the embeddings of the two views have shapes {tuple(first.shape)} and {tuple(second.shape)}; pass two matrices of "
            "equal shape (B, D)."
        )
    if len(first) * world_size() < 2:
        raise ValueError(
            "the loss is made of statistics over the images of a batch, and this one has a single image; pass at least 2."
        )
