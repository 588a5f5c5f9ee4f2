"""A map of a data set in two dimensions, on which images with similar features are close to each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

from superself.basics.drawing import (
    CAPTION,
    COLOURS,
    HEADING,
    MARGIN,
    MUTED,
    RULE,
    TRAINED,
    UNTRAINED,
    Sheet,
    heading_height,
    line_height,
    shorten,
    text_width,
)
from superself.basics.pictures import to_picture
from superself.basics.random import preserve_random_state
from superself.basics.validate import require_choice, require_count
from superself.data import Images, Preprocessing
from superself.evaluation.evaluator import Evaluator
from superself.evaluation.extraction import Features, features, open_at_size
from superself.evaluation.pictures.shared import (
    classes_of,
    open_for,
    open_for_figure,
    places_of,
    untrained_features,
    untrained_of,
)
from superself.evaluation.subject import Subject

PANEL = 620  # pixels of each side of the map; 480 where there are two
THUMBNAIL = 40  # pixels of the longer side
LIMIT = 2000
SMOOTH = 3  # dots are drawn so many times larger and shrunk
OTHER = "#c4c4c4"  # classes beyond the number of colours


class Points(NamedTuple):
    """Places of images on a map (N, 2) in [0, 1], and what the axes are."""

    places: Tensor
    caption: str


def show_map(
    features_or_backbone: Features | nn.Module,
    dataset: Any,
    path: str | Path,
    method: str = "pca",
    thumbnails: bool = True,
    random: Features | nn.Module | bool | None = None,
    limit: int = LIMIT,
    seed: int = 0,
) -> Path:
    """Writes a PNG with a map of the images, coloured by class where there are labels; close images have similar features.

    Every feature vector is divided by its length first, as for the cosine. PCA shows the two directions of most variance, and
    distances on it mean something; t-SNE and UMAP keep neighbours together, and the distance and size of their groups mean
    little. The same call gives the same map.

    Args:
        features_or_backbone: the features of ``dataset``, or a backbone to compute them with.
        dataset: anything that ``features`` takes.
        path: of the PNG; missing folders are created.
        method: "pca"; "tsne", which takes about 10 seconds for 2000 images; "umap", which needs the package umap-learn.
        thumbnails: small images on top of the points, where they do not cover each other.
        random: True for a second map by the same network with random weights; a module; or its features.
        limit: largest number of images; of more, evenly spaced ones are shown.
        seed: of the random weights, the order of thumbnails, t-SNE and UMAP.
    Raises:
        ImportError: if ``method`` is "umap" and umap-learn is not installed.
        ValueError: if ``method`` is unknown, there are fewer than 4 images, or features do not belong to the data set.
    """
    require_choice("method", method, METHODS)
    if isinstance(features_or_backbone, Features):
        if random is True:
            raise ValueError(
                "random=True needs a backbone, and features were given; pass the backbone, or features as random=."
            )
        images = open_at_size(dataset, None)
        preprocessing = Preprocessing.of(images) if isinstance(random, nn.Module) else None
        found = {"trained" if random is not None else "": features_or_backbone.readable()}
    else:
        images, preprocessing = open_for(features_or_backbone, dataset)
        named = "trained" if random is not None and random is not False else ""
        found = {named: features(features_or_backbone, images, preprocessing=preprocessing)}
    if isinstance(random, Features):
        found["random weights"] = random.readable()
    elif random:
        network = untrained_of(features_or_backbone, random, images, preprocessing, seed)
        found["random weights"] = features(network, images, preprocessing=preprocessing)
    return draw_map(found, images, path, method, thumbnails, limit, seed)


def draw_map(
    found: dict[str, Features],
    images: Images,
    path: str | Path,
    method: str = "pca",
    thumbnails: bool = True,
    limit: int = LIMIT,
    seed: int = 0,
) -> Path:
    """The picture of ``show_map`` from the features of the same images by one or two networks, by their captions."""
    require_count("limit", limit, "is the largest number of images on the map")
    first = next(iter(found.values()))
    places, known = places_of(first, images), classes_of(first, images)
    rows = torch.linspace(0, len(first) - 1, min(limit, len(first))).round().long()
    if len(rows) < 4:
        raise ValueError(f"a map needs at least 4 images, got {len(rows)}; pass a larger data set or limit.")
    colours, legend = class_colours(known and known[0][rows], known and known[1])
    points = {name: map_of(one.features[rows], method, seed) for name, one in found.items()}
    side = PANEL if len(found) == 1 else 480
    total = 2 * MARGIN + len(found) * side + (len(found) - 1) * MARGIN
    title = f"Map of the features by {TITLES[method]}"
    number = f"{len(rows):,} of {len(first):,} images" if len(rows) < len(first) else f"{len(rows):,} images"
    subtitle = (
        f"{number}: those with similar features are close to each other{', colours are classes' if known else ''}."
    )
    legend_rows = _legend_rows(legend, total - 2 * MARGIN)
    top = heading_height(title, subtitle, total) + len(legend_rows) * line_height(HEADING) + (6 if legend_rows else 0)
    head = line_height(HEADING) + 4 if len(found) > 1 else 0
    sheet = Sheet(total, top + head + side + line_height(CAPTION) + MARGIN)
    y = sheet.heading(title, subtitle)
    for line in legend_rows:
        for x, name, colour in line:
            sheet.box(MARGIN + x, y + 3, 14, 14, colour)
            sheet.text(MARGIN + x + 20, y + 1, name)
        y += line_height(HEADING)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    for column, (name, shown) in enumerate(points.items()):
        left = MARGIN + column * (side + MARGIN)
        if head:
            sheet.text(left, top, name, HEADING, TRAINED if name == "trained" else UNTRAINED, bold=True)
        panel = draw_dots(shown.places, colours, (side, side), THUMBNAIL / 2 + 5, 5 if len(rows) <= 500 else 3.5)
        if thumbnails:
            _put_thumbnails(panel, shown.places, colours, images, places[rows], order)
        sheet.picture(left, top + head, panel, RULE, 1)
        sheet.text(left, top + head + side + 6, shown.caption, colour=MUTED, width=side)
    return sheet.save(path)


def map_of(vectors: Tensor, method: str = "pca", seed: int = 0) -> Points:
    """Places (N, 2) in [0, 1] for features (N, D); the few farthest points are moved to the border."""
    with preserve_random_state(seed):
        places, caption = METHODS[method](F.normalize(vectors.double(), dim=1), seed)
    bounds = torch.quantile(places, torch.tensor([0.005, 0.995], dtype=places.dtype), dim=0)  # (2, 2)
    extent = (bounds[1] - bounds[0]).clamp_min(1e-12)
    return Points(((places - bounds[0]) / extent).clamp(0, 1), caption)


def _pca(vectors: Tensor, seed: int) -> tuple[Tensor, str]:
    centred = vectors - vectors.mean(0)
    covariance = centred.T @ centred
    values, directions = torch.linalg.eigh(covariance)  # ascending
    axes = directions[:, -2:].flip(1)  # (D, 2)
    if axes.shape[1] < 2:
        axes = F.pad(axes, (0, 1))
    largest = axes.abs().argmax(0)  # an eigenvector has no sign: its largest entry becomes positive
    axes = axes * torch.where(axes[largest, torch.arange(2)] < 0, -1.0, 1.0)
    shares = values.flip(0)[:2] / values.sum().clamp_min(1e-30)
    across, up = (100 * shares[k].item() if k < len(shares) else 0.0 for k in range(2))
    return centred @ axes, f"across: {across:.0f}% of the variance; up: {up:.0f}%"


def _tsne(vectors: Tensor, seed: int) -> tuple[Tensor, str]:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    start = "pca" if vectors.shape[1] >= 2 else "random"
    found = TSNE(2, perplexity=perplexity, init=start, random_state=seed).fit_transform(vectors.float().numpy())
    return torch.from_numpy(found).double(), "t-SNE: groups mean something, distances between them little"


def _umap(vectors: Tensor, seed: int) -> tuple[Tensor, str]:
    try:
        from umap import UMAP
    except ImportError as error:
        raise ImportError(
            'method="umap" needs umap-learn; run: pip install "superself[umap]", or pass method="tsne".'
        ) from error
    neighbours = min(15, len(vectors) - 1)
    start = "spectral" if len(vectors) > 10 else "random"
    reducer = UMAP(n_neighbors=neighbours, init=start, random_state=seed, n_jobs=1)
    found = reducer.fit_transform(vectors.float().numpy())
    return torch.from_numpy(found).double(), "UMAP: groups mean something, distances between them little"


METHODS: dict[str, Callable[[Tensor, int], tuple[Tensor, str]]] = {"pca": _pca, "tsne": _tsne, "umap": _umap}
TITLES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}


def class_colours(labels: Tensor | None, names: list[str] | None) -> tuple[list[str], list[tuple[str, str]]]:
    """A colour for each point, and the legend; classes that are not among the ten most frequent are grey."""
    if labels is None:
        return [], []
    counts = labels.bincount(minlength=len(names))
    frequent = counts.argsort(descending=True, stable=True)[: len(COLOURS)]
    frequent = frequent[counts[frequent] > 0].sort().values.tolist()
    colour = {label: COLOURS[place] for place, label in enumerate(frequent)}
    legend = [(names[label], colour[label]) for label in frequent]
    others = int((counts > 0).sum()) - len(frequent)
    return [colour.get(label, OTHER) for label in labels.tolist()], legend + [(f"{others} other classes", OTHER)] * (
        others > 0
    )


def _legend_rows(legend: list[tuple[str, str]], width: int) -> list[list[tuple[int, str, str]]]:
    """The legend in lines of (x, name, colour)."""
    rows: list[list[tuple[int, str, str]]] = []
    x = width
    for name, colour in legend:
        name = shorten(name, 180)
        needed = 20 + text_width(name) + 18
        if x + needed > width + 18:
            rows.append([])
            x = 0
        rows[-1].append((x, name, colour))
        x += needed
    return rows


def draw_dots(places: Tensor, colours: list[str], size: tuple[int, int], border: float, radius: float) -> Image.Image:
    """A white picture with a dot for each point.

    Args:
        places: (N, 2) in [0, 1].
        colours: N of them, or none.
        size: of the picture, (width, height).
        border: pixels around the outermost points.
        radius: of a dot in pixels.
    """
    large = Image.new("RGB", (SMOOTH * size[0], SMOOTH * size[1]), "white")
    draw = ImageDraw.Draw(large)
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(0)).tolist()
    for row in sorted(order, key=lambda row: bool(colours) and colours[row] != OTHER):  # other classes below
        x, y = (SMOOTH * value for value in _position(places[row], size, border))
        box = (x - SMOOTH * radius, y - SMOOTH * radius, x + SMOOTH * radius, y + SMOOTH * radius)
        draw.ellipse(box, fill=colours[row] if colours else TRAINED)
    return large.resize(size, Image.Resampling.LANCZOS)


def _position(place: Tensor, size: tuple[int, int], border: float) -> tuple[float, float]:
    """Pixels from the upper left."""
    x, y = place.tolist()
    return border + x * (size[0] - 2 * border), border + (1 - y) * (size[1] - 2 * border)


def _put_thumbnails(
    panel: Image.Image, places: Tensor, colours: list[str], images: Images, of_images: Tensor, order: list[int]
) -> None:
    """Puts images on their points, in the given order, where no other is close."""
    height, width = (max(1, round(THUMBNAIL * side / max(images.shape[1:]))) for side in images.shape[1:])
    taken: list[tuple[float, float]] = []
    draw = ImageDraw.Draw(panel)
    for row in order:
        x, y = _position(places[row], panel.size, THUMBNAIL / 2 + 5)
        if any(abs(x - other) < width + 12 and abs(y - above) < height + 12 for other, above in taken):
            continue
        taken.append((x, y))
        left, top = round(x - width / 2), round(y - height / 2)
        box = (left - 3, top - 3, left + width + 2, top + height + 2)
        draw.rectangle(box, fill=colours[row] if colours else "#ffffff", outline=None if colours else MUTED)
        panel.paste(to_picture(images.batch(of_images[row].view(1)).images[0], width, height), (left, top))


class MapFigure(Evaluator):
    """The picture of ``show_map`` during a run; there is nothing to compute.

    Args:
        dataset: images to show, best with labels; None for those that the backbone is trained on.
        method: as for ``show_map``.
        thumbnails: small images on top of the points.
        random: True for a second map by the network with random weights.
        limit: largest number of images.
        every: epochs from one picture to the next.
    """

    name, higher_is_better = "map_figure", None

    def __init__(
        self,
        dataset: Any = None,
        method: str = "pca",
        thumbnails: bool = True,
        random: bool = False,
        limit: int = LIMIT,
        every: int = 1,
    ) -> None:
        super().__init__(every)
        require_choice("method", method, METHODS)
        self.dataset, self.method, self.thumbnails, self.random, self.limit = dataset, method, thumbnails, random, limit
        self._untrained: Features | None = None

    def open(self, subject: Subject) -> None:
        """Opens the images."""
        self._untrained = None
        self.images = open_for_figure(subject, self.dataset, self.name)

    def evaluate(self, subject: Subject) -> dict[str, float]:
        """Nothing: this evaluator only draws."""
        return {}

    def figure(self, subject: Subject, path: Path) -> Path:
        """Writes the picture."""
        found = {"trained" if self.random else "": subject.features(self.images)}
        if self.random:
            if self._untrained is None:
                self._untrained = untrained_features(subject, self.images)
            found["random weights"] = self._untrained
        return draw_map(found, self.images, path, self.method, self.thumbnails, self.limit, subject.seed)
