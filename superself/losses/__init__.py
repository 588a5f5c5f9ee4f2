"""Losses that several algorithms share."""

from superself.losses.cosine import NegativeCosine
from superself.losses.dino import DINOLoss
from superself.losses.info_nce import InfoNCE
from superself.losses.swav import SwAVLoss, sinkhorn

__all__ = ["DINOLoss", "InfoNCE", "NegativeCosine", "SwAVLoss", "sinkhorn"]
