"""Measures of a backbone: features, kNN, linear probe, comparison with random weights, collapse, neighbours."""

from superself.evaluation.chance import map_views, mean_prediction_loss
from superself.evaluation.collapse import effective_rank, feature_rms, feature_std, mean_cosine
from superself.evaluation.comparison import Comparison, compare
from superself.evaluation.extraction import Features, features
from superself.evaluation.knn import knn_accuracy, knn_predict
from superself.evaluation.linear import choose_regularisation, linear_accuracy
from superself.evaluation.monitor import FeatureMonitor, spread
from superself.evaluation.pictures import (
    ConfusionFigure,
    KernelsFigure,
    MapFigure,
    NeighboursFigure,
    query_fig,
    show_columns,
    show_confusion,
    show_curves,
    show_kernels,
    show_map,
    show_neighbours,
    show_overview,
)

__all__ = [
    "Comparison",
    "ConfusionFigure",
    "FeatureMonitor",
    "Features",
    "KernelsFigure",
    "MapFigure",
    "NeighboursFigure",
    "choose_regularisation",
    "compare",
    "effective_rank",
    "feature_rms",
    "feature_std",
    "features",
    "knn_accuracy",
    "knn_predict",
    "linear_accuracy",
    "map_views",
    "mean_cosine",
    "mean_prediction_loss",
    "query_fig",
    "show_columns",
    "show_confusion",
    "show_curves",
    "show_kernels",
    "show_map",
    "show_neighbours",
    "show_overview",
    "spread",
]
