"""The features that a backbone gives for a data set, which every measure in this folder starts from."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from superself.basics.output import is_terminal
from superself.basics.random import preserve_random_state
from superself.basics.validate import require_choice, shortened
from superself.data import Images, Preprocessing, Reading, SequentialBatches, open_images
from superself.networks import feature_maps, pool_features
from superself.networks.modes import device_of, evaluation_mode

BAR_AFTER = 2.0  # seconds
FLATTENED_LIMIT = 4 * 2**30  # bytes of flattened features


@dataclass(frozen=True, eq=False, repr=False)
class Features:
    """The features of a data set, one row per image, in its order; tensors are float32 (features) and on the CPU.

    Args:
        features: (N, D); NaN in the rows of unreadable images, where these were kept.
        labels: (N, ...) what the data set gives with each image, or None. In the row of an unreadable image: its label if
            that is known without reading it (class folders), else -1, or NaN if labels are floating point.
        paths: N file names, or None if the images do not come from files.
        skipped: name of each unreadable image -> reason.
        classes: the name of each class, by its label, or None.
    """

    features: Tensor
    labels: Tensor | None = None
    paths: list[str] | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    classes: list[str] | None = None

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        known = [name for name in ("labels", "paths") if getattr(self, name) is not None]
        parts = f", with {' and '.join(known)}" if known else ""
        return f"{' x '.join(map(str, self.features.shape))} features{parts}, {len(self.skipped)} skipped"

    def readable(self) -> Features:
        """The rows that are not NaN."""
        kept = ~self.features.isnan().all(dim=1)  # (N,)
        return self if kept.all() else self.rows(kept.nonzero().flatten())

    def rows(self, places: Tensor) -> Features:
        """The rows at ``places`` (n,), in that order."""
        labels = None if self.labels is None else self.labels[places]
        paths = None if self.paths is None else [self.paths[row] for row in places.tolist()]
        return Features(self.features[places], labels, paths, self.skipped, self.classes)


class NonFiniteFeatures(ValueError):
    """Features with NaN or infinity: training has diverged."""


class ReadBatch(NamedTuple):
    """Images (B, C, H, W) with labels (B, ...) or None, their places (B,), and which of them could be read (B,)."""

    images: Tensor
    labels: Tensor | None
    places: Tensor
    readable: Tensor


def features(
    backbone: nn.Module,
    dataset: Any,
    *,
    batch_size: int = 256,
    preprocessing: Preprocessing | None = None,
    device: torch.device | str | None = None,
    on_broken: str = "omit",
    progress: str | None = None,
    pool: str = "mean",
) -> Features:
    """The features of every image of ``dataset`` in its order, with labels and file names where it has them.

    The backbone runs in evaluation mode and in float32, without gradients; its modes, its statistics and the random
    state are restored afterwards.

    Args:
        backbone: any module from images to (B, D), (B, D, h, w) or (B, tokens, D).
        dataset: anything that ``open_images`` takes, opened at the size of the preprocessing and read as in training; an
            ``Images`` keeps its own size and values.
        batch_size: images per forward pass; does not change the result.
        preprocessing: what the backbone expects; None: the one it was trained with (``backbone.preprocessing``), and
            for a backbone without one the mean and standard deviation of ``dataset``.
        device: where the backbone is; None: where its first parameter is.
        on_broken: "omit" leaves the rows of unreadable images out, "nan" keeps them as NaN, so that row i is image i.
        progress: title of a bar that is drawn in a terminal after two seconds; None: none.
        pool: "mean" averages maps and tokens; "flatten" keeps the feature at each place, (B, D h w): the maps before the
            pooling of the network, as ``feature_maps`` gives them. These features may take up to 4 GiB.
    Raises:
        TypeError: if ``backbone`` is not a module.
        ValueError: if the images have other channels than the preprocessing, a feature is not finite (its subclass
            NonFiniteFeatures), flattened features do not fit, or ``on_broken`` or ``pool`` is unknown.
    """
    if on_broken not in ("omit", "nan"):
        raise ValueError(f'on_broken={on_broken!r} is unknown; pass "omit" or "nan".')
    require_choice("pool", pool, ("mean", "flatten"))
    found, readable = collect_features(
        backbone, dataset, batch_size, preprocessing, device, progress=progress, pool=pool
    )
    wrong = int((~found.features[readable].isfinite().all(dim=1)).sum())
    if wrong:
        raise NonFiniteFeatures(
            f"the features of {wrong} of {len(found)} images are not finite; train again with a smaller learning rate, "
            "or load an earlier checkpoint."
        )
    return found if on_broken == "nan" else found.readable()


def collect_features(
    backbone: nn.Module,
    dataset: Any,
    batch_size: int = 256,
    preprocessing: Preprocessing | None = None,
    device: torch.device | str | None = None,
    progress: str | None = None,
    pool: str = "mean",
) -> tuple[Features, Tensor]:
    """``features`` with ``on_broken="nan"``, finite or not, and which images could be read (N,)."""
    if not isinstance(backbone, nn.Module):
        raise TypeError(
            f"backbone={shortened(backbone)} is not a module; pass one, such as superself.open_backbone(...) of a run or an "
            "exported file, or superself.load_backbone(...)."
        )
    preprocessing = preprocessing or getattr(backbone, "preprocessing", None)
    images = open_at_size(dataset, preprocessing and preprocessing.shape[1:], preprocessing and preprocessing.reading)
    if len(images) == 0:
        raise ValueError("there are 0 images to compute features of; pass a data set with at least one.")
    preprocessing = (preprocessing or Preprocessing.of(images)).for_images(images)
    reading, channels = preprocessing.reading, images.shape[0]
    if (channels if reading is None else reading.channels(channels)) != preprocessing.shape[0]:
        raise ValueError(
            f"the images have {channels} channels and the backbone was made for {preprocessing.shape[0]}; "
            f"give images of {preprocessing.shape[0]} channels."
        )
    device = torch.device(device or device_of(backbone))
    rows, labels, readable = [], [], []
    # Items with random transforms are the same at every call.
    with (
        preserve_random_state(seed=0),
        torch.no_grad(),
        evaluation_mode(backbone),
        torch.autocast(device.type, enabled=False),
    ):
        for batch in _with_bar(read_in_order(images, batch_size), len(images), progress):
            pixels = preprocessing(batch.images.to(device))
            if pool == "mean":
                output = pool_features(backbone(pixels)).float().cpu()  # (B, D)
            else:
                output = _flattened(feature_maps(backbone, pixels), len(images)).float().cpu()  # (B, D h w)
            output[~batch.readable] = math.nan
            rows.append(output)
            labels.append(batch.labels)
            readable.append(batch.readable)
    labels = None if any(part is None for part in labels) else torch.cat(labels)
    paths = None if images.paths is None else [str(path) for path in images.paths]
    readable = torch.cat(readable)  # (N,)
    names = [images.names[place] for place in (~readable).nonzero().flatten().tolist()]
    skipped = {name: images.skipped[name] for name in names}
    return Features(torch.cat(rows), labels, paths, skipped, images.classes), readable


def _flattened(maps: Tensor, images: int) -> Tensor:
    """Maps (B, D, h, w) as (B, D h w), if the features of so many images are not too large."""
    width = maps[0].numel()
    if 4 * width * images > FLATTENED_LIMIT:
        raise ValueError(
            f'pool="flatten" gives {width:,} features per image ({" x ".join(map(str, maps.shape[1:]))}), and '
            f"{4 * width * images / 2**30:.1f} GiB for {images:,} images, more than the limit of "
            f'{FLATTENED_LIMIT / 2**30:g} GiB; pass smaller or fewer images, or pool="mean".'
        )
    return maps.flatten(1)


def _with_bar(batches: Iterator[ReadBatch], images: int, title: str | None) -> Iterator[ReadBatch]:
    """The batches, with a bar that counts images, where there is a terminal to draw it in."""
    if title is None or not is_terminal(sys.stderr):
        yield from batches
        return
    with tqdm(total=images, desc=title, unit=" images", leave=False, delay=BAR_AFTER, file=sys.stderr) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch.places))


def read_in_order(images: Images, batch_size: int) -> Iterator[ReadBatch]:
    """All images in batches. Where one cannot be read, another image stands in for it: see ``ReadBatch.readable``."""
    images.begin_pass()
    for places in SequentialBatches(len(images), batch_size):
        batch = images.batch(places)
        images.report_broken(batch.broken)
        readable = batch.index == places
        labels = batch.target.clone() if isinstance(batch.target, Tensor) else None
        if labels is not None and not readable.all():
            unknown = math.nan if labels.is_floating_point() else -1
            labels[~readable] = unknown if images.labels is None else images.labels[places[~readable]]
        yield ReadBatch(batch.images, labels, places, readable)


def classified(found: Features, role: str) -> Features:
    """The readable rows of features with class labels.

    Raises:
        ValueError: if there are no labels, they are not classes (N,), or no row is readable.
    """
    if found.labels is None or found.labels.ndim != 1 or found.labels.is_floating_point():
        given = "no labels" if found.labels is None else f"labels {tuple(found.labels.shape)} of {found.labels.dtype}"
        raise ValueError(f"{role} has {given}, and an accuracy needs one class per image; pass integer labels (N,).")
    found = found.readable()
    if len(found) == 0:
        raise ValueError(f"{role} has no readable images; pass features with at least one row that is not NaN.")
    return found


def open_at_size(dataset: Any, size: tuple[int, int] | None, reading: Reading | None = None) -> Images:
    """``open_images`` with image size (H, W) and steps; an ``Images`` is open already and keeps its own."""
    if isinstance(dataset, Images):
        return dataset
    options = {} if reading is None else reading.options()
    return open_images(dataset, image_size=None if size is None else tuple(size), **options)


def open_labelled(dataset: Any, size: tuple[int, int] | None, role: str, reading: Reading | None = None) -> Images:
    """``open_at_size``, loaded into memory if it fits.

    Args:
        dataset: anything that ``open_images`` takes.
        size: (H, W), or None for that of the images.
        role: what the data set is called in the message.
        reading: the steps when images are read.
    Raises:
        ValueError: if the data set has no labels.
    """
    images = open_at_size(dataset, size, reading).load()
    if not isinstance(images.batch([0]).target, Tensor):  # some sources have labels with their items only
        raise ValueError(
            f"{role} has no labels, which are needed to measure accuracy; "
            'pass class folders as "imagefolder:PATH", or a Dataset of (image, label).'
        )
    return images
