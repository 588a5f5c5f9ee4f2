"""DetCon: find each segment of an image in another view of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.optim import Optimizer

from superself.basics.distributed import mean
from superself.basics.pictures import write_pictures
from superself.basics.random import preserve_random_state
from superself.basics.validate import require_choice, require_count, require_fraction, require_positive
from superself.data import Batch, Images, Segmenter, segment_data_set, to_float
from superself.data.sources import evenly_spaced
from superself.evaluation.extraction import open_at_size
from superself.joint_embedding import Head, JointEmbedding
from superself.losses import DetConLoss
from superself.networks import (
    MomentumEncoder,
    SegmentNet,
    build_backbone,
    feature_width,
    map_shape,
    pool_segments,
    segment_areas,
)
from superself.networks.heads import check_head
from superself.training import Schedule
from superself.training.files import checkpoint_path

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options


class DetConSupervisor(JointEmbedding):
    """Find each segment of an image in another view of it, among all segments of all images of the batch.

    L = -log exp(s+ / t) / (exp(s+ / t) + sum_n exp(s_n / t)): s+ is the cosine of the embeddings of a segment in both views, s_n
    those with all other segments, of the same image too. Features are averaged over the cells of a segment and then projected.
    Segments are found once per image and move with its views; ids are drawn for each image, the same ones for both views.

    Source: Henaff et al., Efficient Visual Pretraining with Contrastive Detection, arXiv:2103.10957, Sec. 3.1 (Eq. 3), and the
        authors' code of DetCon-B (preset "detcon-b").
    Deviations: an id is drawn with probability proportional to its area in the image, where the authors' code draws from those
        that each view shows, all alike; see DetConLoss; any optimizer instead of LARS.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        augment: makes two views and must move masks, which functions of a batch do not.
        segments: "felzenszwalb" finds them, "grid" cuts squares, "dataset" takes the masks of the data set (0: background).
        scale: of Felzenszwalb's method: the larger, the fewer segments; bounds to draw it from for each image; None for 0.3
            pixels^(3/4), which is 54 for 32 x 32, and 1000, the paper's number, for 224 x 224.
        min_size: pixels of the smallest segments of Felzenszwalb's method; None for ``scale``.
        grid: cells along each side, for "grid".
        num_samples: S, ids drawn for each image, with replacement.
        temperature: t, divides cosines.
        momentum: None for DetCon-S; of the target network of DetCon-B at the first step, from where it rises to 1; or a Schedule.
        beta: weighs negatives by similarity, as in HCL; see DetConLoss.
        tau_plus: corrects for false negatives, as in HCL; see DetConLoss.
        projector: from features (B, D) to embeddings (B, E); a module, a dictionary of arguments of MLP, or None.
        predictor: of DetCon-B, from embeddings to predictions (B, E), likewise.
        loss: called with query (B, 2, S, E), segments (B, 2, S), key (B, 2, S, E); None for DetConLoss.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if an argument is out of range, or there is no mask to move.
    """

    projector_defaults = {"out_features": 256, "hidden": 2048}  # of DetCon-S
    heads_of_b = {"hidden": 4096, "norm": "batch", "last_bias": False}  # of DetCon-B, projector and predictor
    family = "contrastive"
    paper = ("Hénaff et al. 2021", "https://arxiv.org/abs/2103.10957")
    good_for = "images with several things in them; backbones for detection and segmentation"
    compares_images = True
    loss_meaning = "cross-entropy of finding a segment in the other view among all segments; 0 is perfect"
    likely_causes = (
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "views share too few segments (see show_inputs: try a larger scale, or weaker crops)",
        "the feature maps have too few cells for the segments (try larger images, or a larger scale)",
    )
    presets = {
        "detcon-s": {},
        "detcon-b": {"momentum": 0.996},
    }

    def __init__(
        self,
        dataset: Any = None,
        augment: Any = "byol",
        segments: str = "felzenszwalb",
        scale: float | tuple[float, float] | None = None,
        min_size: int | None = None,
        grid: int = 4,
        num_samples: int = 16,
        temperature: float = 0.1,
        momentum: float | Schedule | None = None,
        beta: float = 0.0,
        tau_plus: float = 0.0,
        backbone: str | nn.Module | None = None,
        projector: Head = None,
        predictor: Head = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(dataset, backbone, projector, loss, collate_fn, augment=augment, **options)
        require_choice("segments", segments, ("felzenszwalb", "grid", "dataset"))
        check_scale(scale)
        if min_size is not None:
            require_count("min_size", min_size, "is the number of pixels of the smallest segments")
        require_count("grid", grid, "is the number of cells along each side", maximum=15)
        require_count("num_samples", num_samples, "is the number of segments drawn for each image")
        if momentum is not None:
            require_fraction("momentum", momentum, "is the fraction of the target that is kept")
        DetConLoss(temperature, beta, tau_plus)  # raises for wrong values
        check_head("predictor", predictor)
        if momentum is None and predictor is not None:
            raise ValueError("only DetCon-B, with a target network, has a predictor; pass momentum=0.996 too.")
        self.segments, self.scale, self.min_size, self.grid = segments, scale, min_size, grid
        self.num_samples, self.temperature, self.momentum = num_samples, temperature, momentum
        self.beta, self.tau_plus = beta, tau_plus
        self.given.predictor = predictor
        self._segmented: tuple[Images, Segmenter] | None = None  # images with segments, and what made those
        self._loader_segments = False  # whether the masks of batches are segments

    def _build(self) -> None:
        self.loss = self.given.loss or self._default_loss()
        backbone = build_backbone(self.given.backbone, self.network_shape)
        self.model = SegmentNet(backbone, self._make_projector(map_shape(backbone, self.network_shape)[0]))
        self.embedding_width = feature_width(self.model, self.network_shape)  # E
        if self.momentum is not None:
            arguments = {"out_features": self.embedding_width, **self.heads_of_b}
            self.predictor = self._make_head(self.given.predictor, self.embedding_width, arguments)
            self.target = MomentumEncoder(self.model)

    def _forward(self, data: Batch) -> Tensor:
        maps = self._segment_maps(data)  # (B, H, W)
        views, masks = self.views_and_masks(replace(data, mask=maps))  # each (B, C, h, w) and (B, h, w)
        ids = self._draw(maps)  # (B, S), for both views
        found = [self.model(view, mask, ids) for view, mask in zip(views, masks, strict=True)]
        embeddings, shown = (torch.stack(parts, 1) for parts in zip(*found, strict=True))  # (B, 2, S, E), (B, 2, S)
        query = key = embeddings
        if self.momentum is not None:
            query = self.predictor(embeddings.flatten(0, 2)).unflatten(0, shown.shape)
            targets = [self.target(view, mask, ids)[0] for view, mask in zip(views, masks, strict=True)]
            key = torch.stack(targets, 1)
        self._note_segments(query.detach(), key.detach(), ids, shown)
        return self.loss(query, shown, key)  # Eq. 3

    def _after_step(self) -> None:
        if self.momentum is not None:
            self.target.update(self.model, self._rising_momentum())

    def _draw(self, maps: Tensor) -> Tensor:
        """The ids (B, S) of segments of maps (B, H, W): those of pixels drawn at random, 0 where there is no segment."""
        numbers = torch.rand(len(maps), self.num_samples, generator=self.generator).to(maps.device, non_blocking=True)
        areas = segment_areas(maps)[:, 1:, 0].cumsum(1)  # (B, 255), of the segments from 1 on
        pixel = torch.minimum(numbers * areas[:, -1:], areas[:, -1:] - 0.5)
        ids = 1 + torch.searchsorted(areas, pixel, right=True)
        return torch.where(areas[:, -1:] > 0, ids, 0)

    @torch.no_grad()
    def _note_segments(self, query: Tensor, key: Tensor, ids: Tensor, shown: Tensor) -> None:
        in_both = (shown > 0).all(1)  # (B, S)
        first = (ids[:, :, None] == ids[:, None]).int().argmax(2) == torch.arange(ids.shape[1], device=ids.device)
        cosine = cosine_similarity(query[:, 0].float(), key[:, 1].float(), dim=2)
        self.note("segments", (in_both & first).sum(1).float())
        self.note("vanished", (~in_both).float())
        self.note("positive_cosine", (cosine * in_both).sum() / mean(in_both.sum().float()).clamp(min=0.1))

    # ---- where segments come from --------------------------------------------------------------------------------------

    @property
    def segmenter(self) -> Segmenter:
        """Makes the segments of an image."""
        scale = tuple(self.scale) if isinstance(self.scale, list) else self.scale
        return Segmenter(self.segments, scale, self.min_size, self.grid)

    def _segment_maps(self, data: Batch) -> Tensor:
        """The segment maps (B, H, W) uint8 of a batch: those that the loader brought, or found here."""
        if self.segments == "grid":
            height, width = data.images.shape[2:]
            return self.segmenter.grid_map(height, width).to(data.images.device).expand(len(data), -1, -1)
        mask = data.mask if self._loader_segments or self.segments == "dataset" else None
        if isinstance(mask, Tensor) and mask.dtype == torch.uint8 and mask.shape[1:] == data.images.shape[2:]:
            return mask
        masks = [None] * len(data) if mask is None else mask.cpu() if isinstance(mask, Tensor) else mask
        maps = [self.segmenter.segment(*pair) for pair in zip(data.images.cpu(), masks, strict=True)]
        return torch.stack(maps).to(data.images.device)

    def _init_data_optimizer(
        self,
        optimizer: Callable[..., Optimizer],
        batch_size: int,
        shuffle: bool,
        num_workers: int,
        collate_fn: Callable[..., Any] | None,
        lr: float,
        lr_scheduler: Callable[..., Any] | str | None,
    ) -> tuple[Any, Optimizer, Any]:
        in_memory = self.images.load().in_memory
        self._loader_segments = in_memory or collate_fn is None
        if self.segments != "grid":
            if in_memory:
                self._segment_images(num_workers)
            elif collate_fn is None:
                collate_fn = self.segmenter
        return super()._init_data_optimizer(optimizer, batch_size, shuffle, num_workers, collate_fn, lr, lr_scheduler)

    def _segment_images(self, num_workers: int) -> None:
        """Finds the segments of all images, unless that was done."""
        if self._segmented == (self.images, self.segmenter):
            return
        self.run.print(f"segments: {self.segments}, of {len(self.images)} images")
        folder, bar = checkpoint_path(self.run.settings.name).parent, self.run.settings.progress
        maps = segment_data_set(self.images, self.segmenter, num_workers, folder, self.device, bar)
        self.images = self.images.with_masks(maps)
        self._segmented = (self.images, self.segmenter)

    # ---- pictures ------------------------------------------------------------------------------------------------------

    def show_inputs(self, path: str | Path, dataset: Any = None, count: int = 5) -> Path:
        """Writes a PNG with a row for each image: image and segments, then both views with theirs. Prints ``segment_report``.

        Args:
            path: of the file; missing folders are made.
            dataset: anything that ``open_images`` takes; None takes the images that are trained on.
            count: rows.
        """
        report = self.segment_report(dataset)
        print(", ".join(f"{name.replace('_', ' ')}: {value:g}" for name, value in report.items()))
        images, maps, views, masks = self._sample(dataset, count)
        pairs = [(images, maps), *zip(views, masks, strict=True)]
        columns = [part for image, mask in pairs for part in (to_float(image), coloured(mask))]
        titles = ["image", "segments", "view 1", "its segments", "view 2", "its segments"]
        return write_pictures(columns, path, titles=titles, title="DetCon: segments of images and of their views")

    @torch.no_grad()
    def segment_report(self, dataset: Any = None, count: int = 200) -> dict[str, float]:
        """What becomes of the segments of up to ``count`` images: to choose ``scale``, ``num_samples`` and the augmentation.

        Args:
            dataset: anything that ``open_images`` takes; None takes the images that are trained on.
            count: images, spread evenly over the data set.
        Returns:
            How many images there were and the mean number of their segments; how many drew a segment twice, lost a drawn
            segment in a view, and lost all of them.
        """
        _, maps, views, masks = self._sample(dataset, count)
        size = map_shape(self.model.backbone, self.view_shape)[1:]
        with preserve_random_state(0, self.generator):
            ids = self._draw(maps)  # (n, S)
        empty = views[0].new_zeros(len(maps), 1, *size)
        shown = torch.stack([pool_segments(empty, mask, ids)[1] for mask in masks], 1)  # (n, 2, S)
        lost = (shown == 0).any(1)  # (n, S)
        ordered = ids.sort(1).values
        return {
            "images": len(maps),
            "segments_per_image": (segment_areas(maps)[:, 1:, 0] > 0).sum(1).float().mean().item(),
            "drew_a_segment_twice": (ordered[:, 1:] == ordered[:, :-1]).any(1).sum().item(),
            "lost_a_segment": lost.any(1).sum().item(),
            "lost_all_segments": lost.all(1).sum().item(),
        }

    def _sample(self, dataset: Any, count: int) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Up to ``count`` images, their segments, and both of their views with theirs; the same ones at every call."""
        images = self.images if dataset is None else open_at_size(dataset, self.images.shape[1:], self.images.reading)
        with preserve_random_state(0, self.generator):
            data = images.batch(evenly_spaced(count, len(images))).to(self.device)
            if images is not self.images and self.segments != "dataset":
                data.mask = None  # of the data set, where only those of the loader are segments
            maps = self._segment_maps(data)
            views, masks = self.augmentation(data.images, self.generator, masks=maps)
        return data.images, maps, views, masks

    def _projector_arguments(self, width: int) -> dict[str, Any]:
        return {**self.projector_defaults, **(self.heads_of_b if self.momentum is not None else {})}

    def _default_loss(self) -> DetConLoss:
        return DetConLoss(self.temperature, self.beta, self.tau_plus)


def check_scale(scale: Any) -> None:
    """Refuses a scale that is neither a positive number, nor a pair of them in order, nor None."""
    if isinstance(scale, (tuple, list)):
        for bound in scale:
            require_positive("scale", bound, "is a bound of Felzenszwalb's scale")
        if len(scale) != 2 or scale[0] > scale[1]:
            raise ValueError(f"scale={scale!r} is not (low, high); pass two numbers in this order, or one.")
    elif scale is not None:
        require_positive("scale", scale, "is the scale of Felzenszwalb's method")


def coloured(masks: Tensor) -> Tensor:
    """A colour for each segment, black for none. Shape: (B, H, W) uint8 -> (B, 3, H, W) in [0, 1]."""
    colours = 0.2 + 0.8 * torch.rand(256, 3, generator=torch.Generator().manual_seed(0))
    colours[0] = 0
    return colours[masks.cpu().long()].permute(0, 3, 1, 2)
