"""Measures of a backbone: features, kNN, linear probe, comparison with random weights, collapse, neighbours."""

from superself.evaluation.chance import map_views, mean_prediction_loss
from superself.evaluation.collapse import effective_rank, feature_rms, feature_std, mean_cosine
from superself.evaluation.comparison import Comparison, compare
from superself.evaluation.evaluating import Evaluation, default_evaluators, evaluate
from superself.evaluation.evaluator import Evaluator
from superself.evaluation.extraction import Features, features
from superself.evaluation.figures import show_columns, show_neighbours
from superself.evaluation.held_out import HeldOutLoss
from superself.evaluation.knn import KNN, knn_accuracy, knn_predict
from superself.evaluation.linear import choose_regularisation, linear_accuracy
from superself.evaluation.monitor import FeatureMonitor, spread
from superself.evaluation.of_supervisor import subject_of
from superself.evaluation.subject import Subject
from superself.evaluation.twin import random_twin

__all__ = [
    "KNN",
    "Comparison",
    "Evaluation",
    "Evaluator",
    "FeatureMonitor",
    "Features",
    "HeldOutLoss",
    "Subject",
    "choose_regularisation",
    "compare",
    "default_evaluators",
    "effective_rank",
    "evaluate",
    "feature_rms",
    "feature_std",
    "features",
    "knn_accuracy",
    "knn_predict",
    "linear_accuracy",
    "map_views",
    "mean_cosine",
    "mean_prediction_loss",
    "random_twin",
    "show_columns",
    "show_neighbours",
    "spread",
    "subject_of",
]
