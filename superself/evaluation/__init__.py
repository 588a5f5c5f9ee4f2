"""What a backbone has learned: features, kNN, linear probe, the table against a random one, collapse, neighbours."""

from superself.evaluation.collapse import effective_rank, feature_std
from superself.evaluation.comparison import Comparison, compare
from superself.evaluation.extraction import Features, features
from superself.evaluation.figures import show_columns, show_neighbours
from superself.evaluation.knn import knn_accuracy, knn_predict
from superself.evaluation.linear import choose_regularisation, linear_accuracy

__all__ = [
    "Comparison",
    "Features",
    "choose_regularisation",
    "compare",
    "effective_rank",
    "feature_std",
    "features",
    "knn_accuracy",
    "knn_predict",
    "linear_accuracy",
    "show_columns",
    "show_neighbours",
]
