"""superself: self-supervised learning on images. Two lines train a backbone without labels; one measures it."""

from superself.algorithms import (
    BiGanSupervisor,
    BYOLSupervisor,
    ContextNetSupervisor,
    ContrastiveMultiviewCodingSupervisor,
    ContrastivePredictiveCodingSupervisor,
    DenoiseNetSupervisor,
    ExemplarNetSupervisor,
    InstanceDiscriminationSupervisor,
    JigsawNetSupervisor,
    MomentumContrastSupervisor,
    PIRLSupervisor,
    RotateNetSupervisor,
    SplitBrainNetSupervisor,
    create,
    list_algorithms,
)
from superself.evaluation import compare, features
from superself.labels import LabelSupervisor
from superself.networks import CombinedNet
from superself.supervisor import Supervisor
from superself.version import __version__

__all__ = [
    "BYOLSupervisor",
    "BiGanSupervisor",
    "CombinedNet",
    "ContextNetSupervisor",
    "ContrastiveMultiviewCodingSupervisor",
    "ContrastivePredictiveCodingSupervisor",
    "DenoiseNetSupervisor",
    "ExemplarNetSupervisor",
    "InstanceDiscriminationSupervisor",
    "JigsawNetSupervisor",
    "LabelSupervisor",
    "MomentumContrastSupervisor",
    "PIRLSupervisor",
    "RotateNetSupervisor",
    "SplitBrainNetSupervisor",
    "Supervisor",
    "__version__",
    "compare",
    "create",
    "features",
    "list_algorithms",
]
