"""SegmentNet: embeddings of the segments of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from superself.networks.combined import CombinedNet
from superself.networks.features import feature_maps

IDS = 256  # 0 for no segment, and those of uint8


class SegmentNet(CombinedNet):
    """A backbone and a projector that takes the mean of its feature maps over a segment.

    Args:
        backbone: as in CombinedNet; see ``feature_maps`` for the maps that each kind gives.
        predictor: the projector, from features (B, D) to embeddings (B, E).

    Shape:
        images (B, C, H, W), masks (B, H, W) uint8, ids (B, S) of segments -> embeddings (B, S, E), and the ids (B, S), 0 where
        the masks do not show the segment; images alone -> embeddings (B, E) of the whole images.
    """

    def forward(self, images: Tensor, masks: Tensor | None = None, ids: Tensor | None = None) -> Any:
        """The embeddings."""
        maps = feature_maps(self.backbone, images)  # (B, D, h, w)
        self._require_fit(maps.shape[1])
        if masks is None:
            return self.predictor(maps.mean((2, 3)))
        features, shown = pool_segments(maps, masks, ids)
        return self.predictor(features.flatten(0, 1)).unflatten(0, ids.shape), shown


def pool_segments(maps: Tensor, masks: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of feature maps over segments, in float32; a cell of the map belongs to the segment with most of its pixels.

    Shape:
        maps (B, D, h, w), masks (B, H, W) uint8, ids (B, S) -> features (B, S, D), and the ids (B, S) int64, 0 for segments
        without a cell, whose features are those of the whole map, which leaves the statistics of a batch norm as they are.
    """
    owner = downsampled(masks, maps.shape[2:])  # (B, h w)
    with torch.autocast(maps.device.type, enabled=False):
        weight = ((owner[:, None] == ids[:, :, None]) & (ids > 0)[:, :, None]).float()  # (B, S, h w)
        cells = weight.sum(2, keepdim=True)
        weight = torch.where(cells > 0, weight / cells.clamp(min=1), 1 / owner.shape[1])
        features = weight @ maps.float().flatten(2).transpose(1, 2)
    return features, torch.where(cells[:, :, 0] > 0, ids, 0)


def downsampled(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """The id with most pixels in each cell of a grid, row by row. Shape: (B, H, W) uint8 -> (B, h w) int64."""
    (height, width), (rows, columns) = masks.shape[1:], size
    row = torch.arange(height, device=masks.device) * rows // height
    column = torch.arange(width, device=masks.device) * columns // width
    cell = row[:, None] * columns + column  # (H, W)
    return segment_areas(masks, cell, rows * columns).argmax(1)


def segment_areas(masks: Tensor, cell: Tensor | None = None, cells: int = 1) -> Tensor:
    """Pixels of each id, in each of some cells. Shape: masks (B, H, W) uint8, cell (H, W) or None -> (B, IDS, cells)."""
    place = masks.long() * cells + (0 if cell is None else cell)
    areas = torch.zeros(len(masks), IDS * cells, device=masks.device)
    ones = torch.ones((), device=masks.device).expand(len(masks), masks[0].numel())
    return areas.scatter_add_(1, place.flatten(1), ones).unflatten(1, (IDS, cells))
