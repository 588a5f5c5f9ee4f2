"""How the images of a data set relate to each other: neighbours, near-duplicates, outliers, a subset that covers all."""

from superself.evaluation.similarity.groups import Duplicates, duplicate_threshold, duplicates
from superself.evaluation.similarity.nearest import Neighbours, neighbours
from superself.evaluation.similarity.scores import Outliers, outliers
from superself.evaluation.similarity.subset import Coverage, coverage

__all__ = [
    "Coverage",
    "Duplicates",
    "Neighbours",
    "Outliers",
    "coverage",
    "duplicate_threshold",
    "duplicates",
    "neighbours",
    "outliers",
]
