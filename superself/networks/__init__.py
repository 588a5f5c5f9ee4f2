"""Networks: backbones and what they provide, heads and decoders, CombinedNet, and state such as queues and averages."""

from __future__ import annotations

from superself.networks.adapters import patch_projection
from superself.networks.alexnet import AlexNetMaps
from superself.networks.backbones import BackboneSpec, build_backbone
from superself.networks.combined import CombinedNet, MapNet, compilable_networks, replicated
from superself.networks.decoders import Decoder, Upsampling
from superself.networks.efficient import EfficientFeatures
from superself.networks.features import (
    describe,
    feature_maps,
    feature_tokens,
    feature_width,
    fresh_copy,
    map_shape,
    pool_features,
    pooled_features,
    tile_width,
)
from superself.networks.halves import HalvesNet, LabHalves, PerHalf, build_halves, without_normalization
from superself.networks.heads import MLP, MultiHead
from superself.networks.memory import FeatureQueue, MemoryBank
from superself.networks.momentum import MomentumEncoder
from superself.networks.norms import (
    BatchRenorm1d,
    LayerNorm2d,
    StandardizedConv2d,
    StandardizedLinear,
    use_layer_norm,
)
from superself.networks.pretrained import LoadedWeights, load_weights
from superself.networks.prototypes import Prototypes
from superself.networks.resnets import ResNet
from superself.networks.segments import SegmentNet, pool_segments, segment_areas

__all__ = [
    "MLP",
    "AlexNetMaps",
    "BackboneSpec",
    "BatchRenorm1d",
    "CombinedNet",
    "Decoder",
    "EfficientFeatures",
    "FeatureQueue",
    "HalvesNet",
    "LabHalves",
    "LayerNorm2d",
    "LoadedWeights",
    "MapNet",
    "MemoryBank",
    "MomentumEncoder",
    "MultiHead",
    "PerHalf",
    "Prototypes",
    "ResNet",
    "SegmentNet",
    "StandardizedConv2d",
    "StandardizedLinear",
    "Upsampling",
    "build_backbone",
    "build_halves",
    "build_sobel",
    "compilable_networks",
    "describe",
    "feature_maps",
    "feature_tokens",
    "feature_width",
    "fresh_copy",
    "load_weights",
    "map_shape",
    "patch_projection",
    "pool_features",
    "pool_segments",
    "pooled_features",
    "replicated",
    "segment_areas",
    "tile_width",
    "use_layer_norm",
    "without_normalization",
]
