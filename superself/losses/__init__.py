"""Losses that several algorithms share."""

from superself.losses.co2 import CO2
from superself.losses.cosine import NegativeCosine
from superself.losses.info_nce import InfoNCE
from superself.losses.mochi import mix_hard_negatives

__all__ = ["CO2", "InfoNCE", "NegativeCosine", "mix_hard_negatives"]
