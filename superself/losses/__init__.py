"""Losses that several algorithms share."""

from superself.losses.cosine import NegativeCosine
from superself.losses.info_nce import InfoNCE
from superself.losses.pair_loss import PairLoss

__all__ = ["InfoNCE", "NegativeCosine", "PairLoss"]
