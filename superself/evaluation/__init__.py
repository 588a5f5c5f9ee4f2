"""Measures of a backbone: features, kNN, linear probe, comparison with random weights, collapse, neighbours."""

from superself.evaluation.centroid import NearestCentroid, centroid_classification
from superself.evaluation.chance import map_views, mean_prediction_loss
from superself.evaluation.classification import Classification
from superself.evaluation.collapse import effective_rank, feature_rms, feature_std, mean_cosine
from superself.evaluation.comparison import Comparison, compare
from superself.evaluation.evaluator import Evaluator
from superself.evaluation.extraction import Features, features
from superself.evaluation.figures import show_columns, show_neighbours
from superself.evaluation.fractions import FractionTable, LabelFractions, label_fractions
from superself.evaluation.knn import KNN, knn_accuracy, knn_classification, knn_predict, knn_scores
from superself.evaluation.linear import LinearProbe, choose_regularisation, linear_accuracy, linear_classification
from superself.evaluation.monitor import FeatureMonitor, spread
from superself.evaluation.ridge import RidgeProbe, ridge_classification
from superself.evaluation.splits import split
from superself.evaluation.subject import Subject
from superself.evaluation.svm import LinearSVM, svm_classification

__all__ = [
    "Classification",
    "Comparison",
    "Evaluator",
    "FeatureMonitor",
    "Features",
    "FractionTable",
    "KNN",
    "LabelFractions",
    "LinearProbe",
    "LinearSVM",
    "NearestCentroid",
    "RidgeProbe",
    "Subject",
    "centroid_classification",
    "choose_regularisation",
    "compare",
    "effective_rank",
    "feature_rms",
    "feature_std",
    "features",
    "knn_accuracy",
    "knn_classification",
    "knn_predict",
    "knn_scores",
    "label_fractions",
    "linear_accuracy",
    "linear_classification",
    "map_views",
    "mean_cosine",
    "mean_prediction_loss",
    "ridge_classification",
    "show_columns",
    "show_neighbours",
    "split",
    "spread",
    "svm_classification",
]
