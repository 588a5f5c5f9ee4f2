"""What the columns of NAME.csv mean, and how their values are written."""

from __future__ import annotations

MEANINGS = {
    "loss": "the pretext loss, mean over the epoch",
    "chance_loss": "the loss at chance level",
    "held_out_loss": "the pretext loss of images that are not trained on",
    "knn": "accuracy of kNN on frozen features",
    "linear": "accuracy of logistic regression on frozen features",
    "svm": "accuracy of a linear support vector machine on frozen features",
    "centroid": "accuracy of the nearest class mean of frozen features",
    "ridge": "accuracy of ridge regression on frozen features",
    "rotation": "accuracy of telling how an image was rotated; needs no labels",
    "feature spread": "spread of the features on a fixed batch; 100% is uniform, 0% collapsed",
    "embedding spread": "spread of what the loss compares; 100% is uniform, 0% collapsed",
    "feature_rank": "how many directions the features use (RankMe)",
    "embedding_rank": "how many directions the embeddings use",
    "feature_cosine": "mean cosine between the features of two images",
    "rankme": "how many directions the features use",
    "feature_rms": "size of the feature values; grows by orders of magnitude when training diverges",
    "embedding_rms": "size of the embedding values",
    "alpha_req": "how fast the variance falls from direction to direction; near 1 is recommended",
    "lidar": "how many directions separate images, rather than views of one image",
    "std": "standard deviation of the features at length one",
    "std_share": "that, relative to features that are uniform on the sphere",
    "positives_cosine": "mean cosine between two views of an image",
    "negatives_cosine": "mean cosine between two images",
    "alignment": "distance between two views of an image; lower is closer",
    "uniformity": "how evenly features cover the sphere; lower is more even",
    "images_per_second": "speed of the epoch",
    "waiting_share": "share of the time spent waiting for images",
    "lr": "learning rate",
}
ACCURACIES = ("knn", "linear", "svm", "centroid", "ridge", "rotation")  # of the features
PRETEXT = ("accuracy", "top1")  # of the training task
PERCENT = (*ACCURACIES, *PRETEXT, "feature spread", "embedding spread", "waiting_share")
HIDDEN = ("epoch", "step", "seconds", "feature_std", "feature_std_uniform", "embedding_std", "embedding_std_uniform")
NOT_DRAWN = (*HIDDEN, "feature_rms", "embedding_rms", "chance_loss", "waiting_share")


def title_of(key: str) -> str:
    """The name of a measure on a page."""
    known = {
        "knn": "kNN",
        "lr": "Learning rate",
        "svm": "SVM",
        "std": "Standard deviation of the features",
        "lidar": "LiDAR",
    }
    known |= {"rankme": "RankMe", "alpha_req": "alpha-ReQ", "feature_rms": "Size of the features (RMS)"}
    text = key.replace("_", " ")
    return known.get(key, text[:1].upper() + text[1:])


def meaning(key: str) -> str:
    """What a measure is, in a few words."""
    if key.startswith(("knn_", "linear_", "svm_", "ridge_", "centroid_")) or " at " in key or " shots " in key:
        return "accuracy on frozen features"
    return MEANINGS.get(key, "noted by the algorithm or an evaluator")


def in_words(key: str, value: float) -> str:
    """A value with as many digits as it deserves."""
    if key in PERCENT or meaning(key).startswith("accuracy"):
        return f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
