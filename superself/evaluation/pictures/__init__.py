"""Pictures of what a network has learned; each function writes a file and returns its path."""

from superself.evaluation.pictures.columns import show_columns
from superself.evaluation.pictures.confusion import ConfusionFigure, show_confusion
from superself.evaluation.pictures.curves import show_curves
from superself.evaluation.pictures.kernels import KernelsFigure, show_kernels
from superself.evaluation.pictures.map import MapFigure, show_map
from superself.evaluation.pictures.neighbours import NeighboursFigure, query_fig, show_neighbours
from superself.evaluation.pictures.overview import show_overview

__all__ = [
    "ConfusionFigure",
    "KernelsFigure",
    "MapFigure",
    "NeighboursFigure",
    "query_fig",
    "show_columns",
    "show_confusion",
    "show_curves",
    "show_kernels",
    "show_map",
    "show_neighbours",
    "show_overview",
]
