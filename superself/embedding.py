"""embed: the features of images, with their paths, in memory and in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from superself.data import Preprocessing, open_images
from superself.evaluation import Features, features
from superself.evaluation.feature_files import check_features_path, read_features, write_features
from superself.loading import open_backbone


def embed(
    images: Any,
    backbone: Any,
    path: str | Path | None = None,
    *,
    batch_size: int = 256,
    dtype: str = "float32",
    preprocessing: Preprocessing | None = None,
    image_size: int | tuple[int, int] | None = None,
    device: torch.device | str | None = None,
    on_broken: str = "omit",
    progress: bool = True,
) -> Features:
    """The features of every image with its path, from whatever holds a backbone; written to ``path`` if one is given.

        embed("my_images", "store/base", "features.parquet")

    Images are read in batches and prepared as in training; the features of all of them are kept in memory, which for a
    million images of 512 features takes 2 GB, and twice as much while they are put together.

    Args:
        images: anything that ``features`` takes: a folder, a list of files, an array, a Dataset.
        backbone: a module, a supervisor, the name of a run, or an exported file.
        path: of the file, which ends in .npz, .parquet (needs the extra "tables") or .csv; see ``load_embeddings``. It is
            checked before the first image is read, and an older file is kept until the new one is complete.
        batch_size: images per forward pass; does not change the result.
        dtype: of the numbers in the file, "float32" or "float16"; the returned features are float32.
        preprocessing: what the backbone expects, if it does not say so itself; see ``features``.
        image_size: one number or (height, width); None for that of the preprocessing, and where there is none, that of the
            images, which must then agree.
        device: where the backbone is; one that is loaded here is moved there.
        on_broken: "omit" leaves the rows of unreadable images out, "nan" keeps them as NaN.
        progress: draw a bar in a terminal when it takes longer than two seconds.
    Raises:
        ImportError, OSError, ValueError: if ``path`` cannot be written, or the images do not fit the backbone.
    """
    if path is not None:
        check_features_path(path, dtype)
    network = open_backbone(backbone)
    if device is not None and not isinstance(backbone, nn.Module):  # a supervisor is a module, too
        network = network.to(device)
    if image_size is not None:
        known = preprocessing or getattr(network, "preprocessing", None)
        reading = None if known is None else known.reading
        images = open_images(images, image_size=image_size, **({} if reading is None else reading.options()))
    found = features(
        network,
        images,
        batch_size=batch_size,
        preprocessing=preprocessing,
        device=device,
        on_broken=on_broken,
        progress="embed" if progress else None,
    )
    if path is not None:
        write_features(found, path, dtype)
    return found


def load_embeddings(path: str | Path) -> Features:
    """The features, labels and paths that ``embed`` has written to a file, for everything that takes ``Features``.

    .npz has the arrays ``features`` (N, D), ``paths`` (N,) and ``labels`` (N, ...), which NumPy reads without pickle. .parquet
    and .csv have a row per image and the columns path, label and f0, f1, ..., D - 1.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no features.
    """
    return read_features(path)
