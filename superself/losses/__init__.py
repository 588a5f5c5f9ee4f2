"""Losses that several algorithms share."""

from superself.losses.cosine import NegativeCosine
from superself.losses.iic import IICLoss
from superself.losses.info_nce import InfoNCE

__all__ = ["IICLoss", "InfoNCE", "NegativeCosine"]
