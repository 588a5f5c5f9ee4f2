"""Losses: tensors in, scalar out. The algorithms use them, and so may your own loop."""

from superself.losses.barlow_twins import BarlowTwins
from superself.losses.co2 import CO2
from superself.losses.cosine import NegativeCosine, SymmetricNegativeCosine
from superself.losses.dcl import DCL, DCLW
from superself.losses.detcon import DetConLoss
from superself.losses.dino import DINOLoss
from superself.losses.hcl import HCL
from superself.losses.hypersphere import Hypersphere, alignment, uniformity
from superself.losses.iic import IICLoss
from superself.losses.info_nce import InfoNCE
from superself.losses.memory_bank import MemoryBankLoss
from superself.losses.mochi import mix_hard_negatives
from superself.losses.nt_xent import NTXent
from superself.losses.pair_loss import PairLoss
from superself.losses.swav import SwAVLoss, sinkhorn
from superself.losses.vicreg import VICReg
from superself.losses.w_mse import WMSE

__all__ = [
    "BarlowTwins",
    "CO2",
    "DCL",
    "DCLW",
    "DINOLoss",
    "DetConLoss",
    "HCL",
    "Hypersphere",
    "IICLoss",
    "InfoNCE",
    "MemoryBankLoss",
    "NTXent",
    "NegativeCosine",
    "PairLoss",
    "SwAVLoss",
    "SymmetricNegativeCosine",
    "VICReg",
    "WMSE",
    "alignment",
    "mix_hard_negatives",
    "sinkhorn",
    "uniformity",
]
