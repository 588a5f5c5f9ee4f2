"""Backbones as files for other programs, and back: state dict, safetensors, TorchScript, ONNX."""
