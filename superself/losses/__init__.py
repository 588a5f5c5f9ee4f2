"""Losses that several algorithms share."""

from superself.losses.cosine import NegativeCosine, SymmetricNegativeCosine
from superself.losses.info_nce import InfoNCE

__all__ = ["InfoNCE", "NegativeCosine", "SymmetricNegativeCosine"]
