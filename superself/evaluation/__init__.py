"""Measures of a backbone: features, kNN, linear probe, comparison with random weights, collapse, neighbours."""

from superself.evaluation.alignment import Alignment, feature_uniformity, other_cosine, view_alignment, view_cosine
from superself.evaluation.centroid import NearestCentroid, centroid_classification
from superself.evaluation.chance import map_views, mean_prediction_loss
from superself.evaluation.classification import Classification
from superself.evaluation.collapse import effective_rank, feature_rms, feature_std, mean_cosine
from superself.evaluation.evaluating import Evaluation, default_evaluators, evaluate
from superself.evaluation.evaluator import Evaluator
from superself.evaluation.extraction import Features, features
from superself.evaluation.fractions import FractionTable, LabelFractions, label_fractions
from superself.evaluation.held_out import HeldOut, HeldOutLoss, held_out_loss
from superself.evaluation.invariance import SERIES, Invariance, InvarianceReport, Series, invariance_report
from superself.evaluation.knn import KNN, knn_accuracy, knn_classification, knn_predict, knn_scores
from superself.evaluation.linear import LinearProbe, choose_regularisation, linear_accuracy, linear_classification
from superself.evaluation.monitor import FeatureMonitor, spread
from superself.evaluation.of_supervisor import subject_of
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
from superself.evaluation.projections import Projections, tensorboard_projections
from superself.evaluation.ridge import RidgeProbe, ridge_classification
from superself.evaluation.rotation_proxy import RotationProxy, rotated_features, rotation_accuracy
from superself.evaluation.shortcuts import Shortcuts, ShortcutTable, feature_shortcuts, pretext_shortcuts
from superself.evaluation.similarity import (
    Coverage,
    Duplicates,
    Neighbours,
    Outliers,
    coverage,
    duplicate_threshold,
    duplicates,
    neighbours,
    outliers,
)
from superself.evaluation.spectrum import LiDAR, Spectrum, alpha_req, lidar, rankme
from superself.evaluation.splits import split
from superself.evaluation.subject import Subject
from superself.evaluation.svm import LinearSVM, svm_classification
from superself.evaluation.twin import random_twin
from superself.evaluation.unlabelled import UnlabelledEvaluator, view_features

__all__ = [
    "Alignment",
    "Classification",
    "ConfusionFigure",
    "Coverage",
    "Duplicates",
    "Evaluation",
    "Evaluator",
    "FeatureMonitor",
    "Features",
    "FractionTable",
    "HeldOut",
    "HeldOutLoss",
    "Invariance",
    "InvarianceReport",
    "KNN",
    "KernelsFigure",
    "LabelFractions",
    "LiDAR",
    "LinearProbe",
    "LinearSVM",
    "MapFigure",
    "NearestCentroid",
    "Neighbours",
    "NeighboursFigure",
    "Outliers",
    "Projections",
    "RidgeProbe",
    "RotationProxy",
    "SERIES",
    "Series",
    "ShortcutTable",
    "Shortcuts",
    "Spectrum",
    "Subject",
    "UnlabelledEvaluator",
    "alpha_req",
    "centroid_classification",
    "choose_regularisation",
    "coverage",
    "default_evaluators",
    "duplicate_threshold",
    "duplicates",
    "effective_rank",
    "evaluate",
    "feature_rms",
    "feature_shortcuts",
    "feature_std",
    "feature_uniformity",
    "features",
    "held_out_loss",
    "invariance_report",
    "knn_accuracy",
    "knn_classification",
    "knn_predict",
    "knn_scores",
    "label_fractions",
    "lidar",
    "linear_accuracy",
    "linear_classification",
    "map_views",
    "mean_cosine",
    "mean_prediction_loss",
    "neighbours",
    "other_cosine",
    "outliers",
    "pretext_shortcuts",
    "query_fig",
    "random_twin",
    "rankme",
    "ridge_classification",
    "rotated_features",
    "rotation_accuracy",
    "show_columns",
    "show_confusion",
    "show_curves",
    "show_kernels",
    "show_map",
    "show_neighbours",
    "show_overview",
    "split",
    "spread",
    "subject_of",
    "svm_classification",
    "tensorboard_projections",
    "view_alignment",
    "view_cosine",
    "view_features",
]
