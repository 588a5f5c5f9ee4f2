"""Backbones as files for other programs, and back: state dict, safetensors, TorchScript, ONNX."""

from superself.exporting.opening import load_backbone
from superself.exporting.writing import Exported, export_backbone

__all__ = ["Exported", "export_backbone", "load_backbone"]
