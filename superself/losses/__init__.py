"""Losses that more than one algorithm may use: tensors in, a scalar out, no state."""

from superself.losses.cosine import NegativeCosine

__all__ = ["NegativeCosine"]
