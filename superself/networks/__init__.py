"""Networks: backbones, the heads behind them, and CombinedNet, which joins the two."""

from __future__ import annotations

from superself.networks.backbones import build_backbone
from superself.networks.combined import CombinedNet, compilable_networks, feature_width, pool_features, tile_width
from superself.networks.decoders import Decoder, Upsampling
from superself.networks.efficient import EfficientFeatures
from superself.networks.halves import HalvesNet, LabHalves, PerHalf, Pool, build_halves, keep_rgb
from superself.networks.heads import MLP, MultiHead
from superself.networks.memory import FeatureQueue, MemoryBank
from superself.networks.momentum import MomentumEncoder
from superself.networks.norms import BatchRenorm1d, LayerNorm2d, StandardizedLinear, use_layer_norm

__all__ = [
    "MLP",
    "BatchRenorm1d",
    "CombinedNet",
    "Decoder",
    "EfficientFeatures",
    "FeatureQueue",
    "HalvesNet",
    "LabHalves",
    "LayerNorm2d",
    "MemoryBank",
    "MomentumEncoder",
    "MultiHead",
    "PerHalf",
    "Pool",
    "StandardizedLinear",
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
