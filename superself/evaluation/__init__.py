"""Measures of a backbone: features, kNN, linear probe, comparison with random weights, collapse, neighbours."""

from superself.evaluation.chance import map_views, mean_prediction_loss
from superself.evaluation.collapse import effective_rank, feature_rms, feature_std, mean_cosine
from superself.evaluation.comparison import Comparison, compare
from superself.evaluation.extraction import Features, features
from superself.evaluation.figures import show_columns, show_neighbours
from superself.evaluation.knn import knn_accuracy, knn_predict
from superself.evaluation.linear import choose_regularisation, linear_accuracy
from superself.evaluation.monitor import FeatureMonitor, spread
from superself.evaluation.projections import Projections, tensorboard_projections

__all__ = [
    "Comparison",
    "FeatureMonitor",
    "Features",
    "Projections",
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
    "show_columns",
    "show_neighbours",
    "spread",
    "tensorboard_projections",
]
