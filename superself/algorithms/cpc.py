"""CPC: predict the patches on one side of an image from those on the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from superself.augment import (
    ColorJitter,
    Compose,
    OverlappingPatches,
    RandomGrayscale,
    RandomHorizontalFlip,
    Transform,
    recipe,
)
from superself.augment.recipes import is_small
from superself.basics.validate import require_count, require_positive
from superself.data import Batch, to_float
from superself.evaluation.figures import show_columns
from superself.networks import CombinedNet, build_backbone, feature_width, tile_width
from superself.supervisor import Supervisor

DIRECTIONS: tuple[
    Callable[[Tensor], Tensor], ...
] = (  # of (B, R, C, ...): after the turn, what is predicted lies further down
    lambda grid: grid,  # from what lies above
    lambda grid: grid.flip(1),  # from below
    lambda grid: grid.transpose(1, 2),  # from the left
    lambda grid: grid.transpose(1, 2).flip(1),  # from the right
)


class ContrastivePredictiveCodingSupervisor(Supervisor):
    """Cuts images into overlapping patches and predicts patches from all that lie on one side of them, in four directions.

    Each patch (i, j) is augmented on its own and embedded as z_ij; a masked network makes of the rows down to i a context c_ij;
    W_k c_ij predicts the target t_{i+k,j} = V z_{i+k,j} among the targets t_l of all N patches of the batch:
    L = -log exp(s W_k c_ij . t_{i+k,j}) / sum_l exp(s W_k c_ij . t_l), averaged over patches, k and directions; chance: ln N.

    Source: Henaff et al., CPC v2, arXiv:1905.09272; context network, offset and scale of the pseudo-code in its appendix. Image
        patches: van den Oord et al., CPC, arXiv:1807.03748.
    Deviations: one context network of 256 channels for all directions, with separate predictions for each; three distances,
        where the pseudo-code has only the nearest; patches that overlap by half; weaker augmentation of small patches.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        augment: of each patch; True takes "cpc", and flips, colour jitter and greyscale for patches of up to 32 pixels.
        patch_size: in pixels; None takes a quarter of the shorter side, so that a square has 7 x 7 patches, and at least 16
            where that leaves 3 x 3 (32 pixels).
        stride: from one patch to the next, in pixels; None takes half a patch.
        steps: how many distances k are predicted, as far as the grid has them, starting at the nearest whose patches share
            no pixel with the context: 2 for patches that overlap by half.
        scale: s.
        layer_norm: replace each 2d batch norm of the backbone by layer norm, in place also for a given module: batch norm
            leaks information from one patch to another.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module; sees patches and, later, images.
        context: from features (B, R, C, D) to contexts (B, R, C, W) that see no row further down; None for MaskedContext.
        predictor: V, from features (N, D) to targets (N, E); None for a linear layer with E = 64.
        loss: of (logits (Q, N), positions of the targets (Q,)); None for the cross-entropy.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if the patches leave nothing to predict.
    """

    family = "contrastive"
    loss_meaning = (
        "cross-entropy of finding a patch among all of the batch from what lies on one side of it; 0 is perfect"
    )
    likely_causes = (
        "the learning rate is too high for this optimizer (try a tenth of it)",
        "the patches are so small, or augmented so strongly, that they say nothing about their neighbours",
        "the images are textures without parts that belong together",
    )

    def __init__(
        self,
        dataset: Any = None,
        augment: Any = True,
        patch_size: int | None = None,
        stride: int | None = None,
        steps: int = 3,
        scale: float = 0.1,
        layer_norm: bool = True,
        backbone: str | nn.Module | None = None,
        context: nn.Module | None = None,
        predictor: nn.Module | None = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(None, dataset, loss, collate_fn, augment=augment, **options)
        for name, value in (("patch_size", patch_size), ("stride", stride)):
            if value is not None:
                require_count(name, value, "is in pixels")
        require_count("steps", steps, "is a number of distances")
        require_positive("scale", scale, "multiplies the scores")
        self.patch_size, self.stride, self.steps, self.scale, self.layer_norm = (
            patch_size,
            stride,
            steps,
            scale,
            layer_norm,
        )
        self.given.backbone, self.given.context, self.given.predictor = backbone, context, predictor

    def _build(self) -> None:
        self.loss = self.given.loss or nn.CrossEntropyLoss()
        size, _, grid, distances = self._geometry(self.network_shape)
        norm = "layer" if self.layer_norm else "batch"
        backbone = build_backbone(self.given.backbone, self.network_shape, norm=norm)
        width = tile_width(backbone, self.network_shape, size, "a larger patch_size")
        self.model = CombinedNet(backbone, self.given.predictor or nn.Linear(width, 64))  # z, then V z
        self.context = self.given.context or MaskedContext(width)
        embedding = feature_width(self.model, (self.network_shape[0], size, size))
        seen = self.context(torch.zeros(1, *grid, width, device=self.device)).shape[-1]
        self.linear = nn.ModuleList(nn.Linear(seen, len(ks) * embedding) for ks in distances)  # W_k
        self._distance_counts = [len(ks) for ks in distances]

    def _build_views(self) -> None:
        size, stride, self.grid, self.distances = self._geometry(self.view_shape)
        self.patches = OverlappingPatches(size, stride)
        self.augmentation = recipe(self.augment, size, views=1, default=default_augment(size))

    def _geometry(self, shape: tuple[int, int, int]) -> tuple[int, int, tuple[int, int], list[range]]:
        """Patch size, stride, grid (R, C) and the distances k of the four directions, for images of ``shape``."""
        sides = shape[1:]
        size = self.patch_size or min(max(16, min(sides) // 8 * 2), min(sides) // 2)
        stride = self.stride or max(1, size // 2)
        grid = tuple((side - size) // stride + 1 for side in sides)
        nearest = math.ceil(size / stride)  # the first k whose patches share no pixel with the context
        if min(grid) <= nearest:
            raise ValueError(
                f"patches of {size} pixels every {stride} pixels give a grid of {grid[0]} x {grid[1]} on images of "
                f"{sides[0]} x {sides[1]}, and {nearest + 1} x {nearest + 1} is the least; pass a smaller patch_size or larger "
                "images."
            )
        return (
            size,
            stride,
            grid,
            [range(nearest, min(nearest + self.steps, n)) for n in (grid[0],) * 2 + (grid[1],) * 2],
        )

    def _forward(self, data: Batch) -> Tensor:
        patches = self.preprocessing(self._inputs(data.images))  # (N, C, S, S) with N = B * R * C
        z = self.model.features(patches)  # (N, D)
        targets = self.model.predictor(z)  # (N, E)
        pairs = self._predictions(z.unflatten(0, (-1, *self.grid)))
        return torch.stack([self.loss(self._scores(found, targets), sought) for found, sought in pairs]).mean()

    def _predictions(self, z: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each direction and k: predictions (Q, E) from features (B, R, C, D), and the positions of their targets (Q,)."""
        positions = torch.arange(z.shape[:3].numel(), device=z.device).view(z.shape[:3])
        pairs = []
        for turn, linear, count, distances in zip(
            DIRECTIONS, self.linear, self._distance_counts, self.distances, strict=True
        ):
            predictions = linear(self.context(turn(z))).chunk(count, -1)  # each (B, R, C, E)
            for k, prediction in zip(distances, predictions, strict=False):  # the same column, k rows further down
                pairs.append((prediction[:, :-k].flatten(0, 2), turn(positions)[:, k:].flatten()))
        return pairs

    def _inputs(self, images: Tensor) -> Tensor:
        """The patches of images (B, C, H, W), each augmented on its own -> (B * R * C, C, S, S) in [0, 1]."""
        return self.augmentation(self.patches(images).flatten(0, 1), self.generator)[0]

    def _scores(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Logits (Q, N) of predictions (Q, E) and the targets (N, E) of all patches."""
        with torch.autocast(targets.device.type, enabled=False):
            return self.scale * predictions.float() @ targets.float().T

    @property
    def chance_loss(self) -> float | None:
        """ln N for the N patches of a batch; None before the batch size is known."""
        return None if self.run is None else math.log(self.run.settings.batch_size * math.prod(self.grid))

    def show_inputs(self, path: str | Path, dataset: Any = None, count: int = 8) -> Path:
        """Writes a PNG: for each image the original, its patches, and the patches as the network is given them.

        Args:
            path: where the picture goes; missing folders are made.
            dataset: anything that ``open_images`` takes; None takes the images of the supervisor.
            count: rows.
        """

        def columns(images: Tensor) -> list[Tensor]:
            grids = [self._as_grid(patches) for patches in (self.patches(images).flatten(0, 1), self._inputs(images))]
            return [F.interpolate(to_float(images), size=grids[0].shape[2:]), *grids]

        return show_columns(self, columns, path, dataset, count)

    def _as_grid(self, patches: Tensor) -> Tensor:
        """Patches (B * R * C, C, S, S) side by side, one white pixel around each -> (B, C, R * (S + 2), C * (S + 2))."""
        patches = F.pad(patches, (1, 1, 1, 1), value=1.0).unflatten(0, (-1, *self.grid))
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


class MaskedContext(nn.Module):
    """A context for every patch of a grid, made of the patches of its row and of the rows above.

    Each block reaches sideways and up; what lies further down has no weight at all, so that nothing needs to be masked.

    Source: Henaff et al., CPC v2, arXiv:1905.09272, pseudo-code of the appendix (pixelCNN).
    Deviations: features are brought to ``width`` channels first, where the paper works on all of them.
    Args:
        features: D of the patches.
        width: of the contexts.
        blocks: residual blocks, each of which sees one row further up and one column further to each side.
    Shape:
        (B, R, C, D) -> (B, R, C, width).
    """

    def __init__(self, features: int, width: int = 256, blocks: int = 5) -> None:
        super().__init__()
        self.enter = nn.Linear(features, width)
        self.blocks = nn.ModuleList(ContextBlock(width) for _ in range(blocks))

    def forward(self, z: Tensor) -> Tensor:
        """The contexts of a grid of patches."""
        c = self.enter(z)
        for block in self.blocks:
            c = c + block(c)
        return c.relu()


class ContextBlock(nn.Module):
    """What a residual block of MaskedContext adds: convolutions of 1 x 1, 1 x 3, 2 x 1 and 1 x 1, as linear layers.

    Shape:
        (B, R, C, width) -> (B, R, C, width).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(width, width), nn.Linear(width, width)
        self.sideways, self.up = nn.Linear(3 * width, width), nn.Linear(2 * width, width)

    def forward(self, c: Tensor) -> Tensor:
        """The addition."""
        c = F.pad(self.enter(c).relu(), (0, 0, 1, 1))  # a column of zeros on each side
        c = self.sideways(torch.cat([c[:, :, :-2], c[:, :, 1:-1], c[:, :, 2:]], -1))
        c = F.pad(c, (0, 0, 0, 0, 1, 0))  # a row of zeros on top
        return self.leave(self.up(torch.cat([c[:, :-1], c[:, 1:]], -1)).relu())


def default_augment(size: int) -> str | Transform:
    """The recipe "cpc" for large patches; for small ones a weaker augmentation."""
    if not is_small(size):
        return "cpc"
    return Compose([RandomHorizontalFlip(), ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8), RandomGrayscale(0.25)])
