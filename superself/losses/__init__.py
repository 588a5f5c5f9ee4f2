"""Losses: tensors in, scalar out. The algorithms use them, and so may a loop of your own."""

from superself.losses.co2 import CO2
from superself.losses.cosine import NegativeCosine
from superself.losses.iic import IICLoss
from superself.losses.info_nce import InfoNCE
from superself.losses.mochi import mix_hard_negatives

__all__ = [
    "CO2",
    "IICLoss",
    "InfoNCE",
    "NegativeCosine",
    "mix_hard_negatives",
]
