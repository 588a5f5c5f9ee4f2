"""What to reduce when memory runs out."""

from __future__ import annotations

from typing import Any

import torch

PHRASES = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
)  # of RuntimeErrors, where torch has no class for it


def explain_out_of_memory(error: BaseException | None, supervisor: Any) -> BaseException | None:
    """An error of the same kind that names what takes memory and what to reduce; None for any other error.

    Args:
        error: what was raised.
        supervisor: of the run.
    """
    known = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError))
    if not known and not (isinstance(error, RuntimeError) and any(text in str(error) for text in PHRASES)):
        return None
    settings, (_, height, width) = supervisor.run.settings, supervisor.view_shape
    views = "1 view" if supervisor.n_views == 1 else f"{supervisor.n_views} views"
    kind = type(error) if known else MemoryError
    reason = str(error).strip().split("\n")[0] or "no memory could be allocated"
    return kind(
        f"Memory ran out on {supervisor.device} with batch_size={settings.batch_size}, {views} of each image and "
        f"{height} x {width} pixels per view ({reason}). Pass a smaller batch_size= or view_size=, or keep them and pass "
        'micro_batch= or accumulate=, which compute a batch in parts, or precision="bf16-mixed".'
    )
