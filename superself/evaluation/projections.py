"""Embeddings, thumbnails and labels of a data set for the PROJECTOR tab of TensorBoard."""

from __future__ import annotations

import importlib.util
import math
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from superself.basics.pictures import GAP, display_range, fit_into_squares
from superself.basics.validate import require_count
from superself.data import Images
from superself.evaluation.evaluator import Evaluator
from superself.evaluation.extraction import Features
from superself.evaluation.subject import Subject

SPRITE = 8192  # pixels; browsers refuse larger textures
LARGEST, SMALLEST = 64, 16  # pixels of a thumbnail with its frame
MOST = (SPRITE // SMALLEST) ** 2  # thumbnails on a sprite
CHUNK = 256  # images that are read at once
CONFIG = "projector_config.pbtxt"


def tensorboard_projections(
    backbone: nn.Module, dataset: Any, logdir: str | Path, name: str = "features", count: int = 5000
) -> Path:
    """Writes what TensorBoard's PROJECTOR tab shows: the features of a data set with thumbnails, file names and labels.

    Look at it with ``tensorboard --logdir LOGDIR``: it projects the features with PCA, t-SNE or UMAP in the browser. Images
    that cannot be read are left out.

    Args:
        backbone: any module that ``features`` takes.
        dataset: anything that ``open_images`` takes, with or without labels.
        logdir: folder of these files; others that it holds, and features under another ``name``, stay.
        name: of these features in the tab; those of the same name are replaced.
        count: largest number of images, evenly spaced over a larger data set; browsers are slow with more than 10,000. The
            thumbnails have at most 64 pixels, fewer for more than 16,384 images.
    Returns:
        The path of the projector's configuration in ``logdir``.
    Raises:
        ImportError: if TensorBoard is not installed.
        ValueError: if ``count`` is larger than 262,144, the number of thumbnails that TensorBoard can show, or the data set has
            no readable image.
    """
    _require_tensorboard()
    _check_count(count)
    subject = Subject(backbone)
    images = subject.open(dataset)
    return write_projections(subject.features(images), images, Path(logdir), name, count)


class Projections(Evaluator):
    """Writes the features of a data set for TensorBoard's PROJECTOR tab; adds no value to the record.

    Args:
        dataset: as in ``tensorboard_projections``.
        logdir: as there; use a folder for this alone, for example "store/tensorboard/base-projector".
        count: as there.
        every: epochs from one to the next; each replaces the one before.
    """

    name: ClassVar[str] = "projections"
    higher_is_better: ClassVar[bool | None] = None

    def __init__(self, dataset: Any, logdir: str | Path, count: int = 5000, every: int = 1) -> None:
        super().__init__(every)
        _require_tensorboard()
        _check_count(count)
        self.dataset, self.logdir, self.count = dataset, Path(logdir), count

    def open(self, subject: Subject) -> None:
        """Opens the data set."""
        self.images = subject.open(self.dataset)

    def evaluate(self, subject: Subject) -> dict[str, float]:
        """Writes the files; there is nothing to report."""
        write_projections(subject.features(self.images), self.images, self.logdir, "features", self.count)
        return {}


def write_projections(found: Features, images: Images, logdir: Path, name: str, count: int) -> Path:
    """The files of ``tensorboard_projections``.

    Args:
        found: the features of the readable images of ``images``, in their order.
        images: the data set.
        logdir: their folder.
        name: of the features.
        count: how many images at most.
    """
    names, places = images.names, torch.arange(len(images))
    if len(found) < len(images):
        places = torch.tensor([place for place in places.tolist() if names[place] not in found.skipped])
    rows = torch.arange(len(found))
    if len(rows) > count:
        rows = torch.linspace(0, len(found) - 1, count).round().long()
        warnings.warn(
            f"the projector gets {count} of {len(found)} images, evenly spaced; pass count= for another number.",
            stacklevel=3,
        )
    if len(rows) == 0 or len(places) != len(found):
        raise ValueError(
            f"{len(found)} features do not fit {len(places)} readable images; pass those of this data set."
        )
    folder = logdir / name
    folder.mkdir(parents=True, exist_ok=True)
    np.savetxt(folder / "tensors.tsv", found.features[rows].numpy(), fmt="%.6g", delimiter="\t")
    labels = None if found.labels is None or found.labels.ndim != 1 else found.labels[rows].tolist()
    if labels is not None and images.classes and not found.labels.is_floating_point():
        labels = [images.classes[label] if 0 <= label < len(images.classes) else label for label in labels]
    _write_metadata(folder / "metadata.tsv", [names[place] for place in places[rows].tolist()], labels)
    side = _write_sprite(folder / "sprite.png", images, places[rows])
    return _write_config(logdir, name, side)


def _write_metadata(path: Path, names: list[str], labels: list[Any] | None) -> None:
    """File names and labels; a single column has no header, as TensorBoard expects."""
    rows = [names] if labels is None else [["label", *map(str, labels)], ["file", *names]]
    lines = ["\t".join(" ".join(cell.split()) for cell in line) for line in zip(*rows, strict=True)]
    path.write_bytes(("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))


def _write_sprite(path: Path, images: Images, places: Tensor) -> int:
    """One picture with all thumbnails, row by row, in a square; returns the side of a thumbnail."""
    columns = math.ceil(math.sqrt(len(places)))
    side = min(LARGEST, SPRITE // columns, max(SMALLEST, *images.shape[1:]) + GAP)
    sheet = np.full((columns * side, columns * side, 3), 255, dtype=np.uint8)
    shown = None
    for first in range(0, len(places), CHUNK):
        batch = images.batch(places[first : first + CHUNK]).images  # (B, C, h, w)
        is_byte, batch = batch.dtype == torch.uint8, batch.float()
        shown = shown or ((0.0, 255.0) if is_byte else display_range(batch))
        low, high = shown
        cells = fit_into_squares((batch - low) / (high - low), side - GAP)  # (B, 3, side, side)
        for number, cell in enumerate((cells * 255).round().byte().permute(0, 2, 3, 1).numpy(), start=first):
            row, column = divmod(number, columns)
            sheet[row * side : (row + 1) * side, column * side : (column + 1) * side] = cell
    Image.fromarray(sheet).save(path)
    return side


def _write_config(logdir: Path, name: str, side: int) -> Path:
    """Adds the files to the configuration, and makes TensorBoard list the folder."""
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import EmbeddingInfo, ProjectorConfig
    from torch.utils.tensorboard import SummaryWriter

    path, config = logdir / CONFIG, ProjectorConfig()
    if path.is_file():
        text_format.Parse(path.read_text(), config)
    others = [entry for entry in config.embeddings if entry.tensor_name != name]
    entry = EmbeddingInfo(tensor_name=name, tensor_path=f"{name}/tensors.tsv", metadata_path=f"{name}/metadata.tsv")
    entry.sprite.image_path = f"{name}/sprite.png"
    entry.sprite.single_image_dim.extend([side, side])
    del config.embeddings[:]
    config.embeddings.extend([*others, entry])
    path.write_text(text_format.MessageToString(config))
    if not any(logdir.glob("events.out.tfevents.*")):  # folders without events are not looked at
        SummaryWriter(str(logdir)).close()
    return path


def _check_count(count: int) -> None:
    require_count("count", count, "is the largest number of images in the projector")
    if count > MOST:
        raise ValueError(f"count={count} is more than the {MOST} thumbnails that TensorBoard can show; pass fewer.")


def _require_tensorboard() -> None:
    if importlib.util.find_spec("tensorboard") is None:
        raise ImportError(
            'projections are shown by TensorBoard, which is not installed; run: pip install "superself[tensorboard]"'
        )
