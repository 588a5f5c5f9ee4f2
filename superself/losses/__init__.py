"""Losses that several algorithms share."""

from superself.losses.cosine import NegativeCosine
from superself.losses.detcon import DetConLoss
from superself.losses.info_nce import InfoNCE

__all__ = ["DetConLoss", "InfoNCE", "NegativeCosine"]
