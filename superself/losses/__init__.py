"""Losses that several algorithms share."""

from superself.losses.barlow_twins import BarlowTwins
from superself.losses.cosine import NegativeCosine, SymmetricNegativeCosine
from superself.losses.hypersphere import Hypersphere, alignment, uniformity
from superself.losses.info_nce import InfoNCE
from superself.losses.vicreg import VICReg
from superself.losses.w_mse import WMSE

__all__ = [
    "BarlowTwins",
    "Hypersphere",
    "InfoNCE",
    "NegativeCosine",
    "SymmetricNegativeCosine",
    "VICReg",
    "WMSE",
    "alignment",
    "uniformity",
]
