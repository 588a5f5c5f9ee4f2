"""superself: self-supervised learning on images. Two lines train a backbone without labels; one measures it."""

from superself.algorithms import BYOLSupervisor, RotateNetSupervisor, create, list_algorithms
from superself.evaluation import compare, features
from superself.evaluation.label import LabelSupervisor
from superself.networks import CombinedNet
from superself.supervisor import Supervisor
from superself.version import __version__

__all__ = [
    "BYOLSupervisor",
    "CombinedNet",
    "LabelSupervisor",
    "RotateNetSupervisor",
    "Supervisor",
    "__version__",
    "compare",
    "create",
    "features",
    "list_algorithms",
]
