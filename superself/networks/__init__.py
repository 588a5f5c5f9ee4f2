"""Networks: backbones, the heads behind them, and CombinedNet, which joins the two."""

from __future__ import annotations

from superself.networks.backbones import build_backbone
from superself.networks.combined import CombinedNet, feature_width, pool_features
from superself.networks.decoders import Decoder, Upsampling
from superself.networks.efficient import EfficientFeatures
from superself.networks.heads import MLP
from superself.networks.memory import FeatureQueue, MemoryBank
from superself.networks.momentum import MomentumEncoder
from superself.networks.norms import LayerNorm2d, use_layer_norm

__all__ = [
    "MLP",
    "CombinedNet",
    "Decoder",
    "EfficientFeatures",
    "FeatureQueue",
    "LayerNorm2d",
    "MemoryBank",
    "MomentumEncoder",
    "Upsampling",
    "build_backbone",
    "feature_width",
    "pool_features",
    "use_layer_norm",
]
