"""Networks: backbones, the heads behind them, and CombinedNet, which joins the two."""

from __future__ import annotations

from superself.networks.backbones import build_backbone
from superself.networks.combined import CombinedNet, compilable_networks, feature_width, pool_features, tile_width
from superself.networks.decoders import Decoder, Upsampling
from superself.networks.efficient import EfficientFeatures
from superself.networks.halves import HalvesNet, LabHalves, PerHalf, Pool, build_halves, keep_rgb
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
    "HalvesNet",
    "LabHalves",
    "LayerNorm2d",
    "MemoryBank",
    "MomentumEncoder",
    "PerHalf",
    "Pool",
    "Upsampling",
    "build_backbone",
    "build_halves",
    "compilable_networks",
    "feature_width",
    "keep_rgb",
    "pool_features",
    "tile_width",
    "use_layer_norm",
]
