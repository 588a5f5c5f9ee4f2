"""superself: self-supervised learning on images. Two lines train a backbone without labels; one measures it."""

from superself import algorithms
from superself.algorithms import *  # noqa: F403 - the algorithms and the registry, as algorithms.__all__ lists them
from superself.comparison import compare
from superself.data import Batch
from superself.embedding import embed, load_embeddings
from superself.evaluation import features
from superself.exporting import export_backbone, load_backbone
from superself.labels import LabelSupervisor
from superself.loading import open_backbone
from superself.networks import CombinedNet
from superself.reporting import report, runs
from superself.suggestions import Suggestion, suggest
from superself.supervisor import Supervisor
from superself.training import Tracker
from superself.version import __version__

__all__ = [
    *(name for name in algorithms.__all__ if name != "ALGORITHMS"),
    "Batch",
    "CombinedNet",
    "LabelSupervisor",
    "Suggestion",
    "Supervisor",
    "Tracker",
    "__version__",
    "compare",
    "embed",
    "export_backbone",
    "features",
    "load_backbone",
    "load_embeddings",
    "open_backbone",
    "report",
    "runs",
    "suggest",
]
