"""CPC: predict the patches on one side of an image from those on the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from superself.basics.distributed import gather, rank
from superself.basics.validate import require_bool, require_count, require_positive
from superself.data import Batch, to_float
from superself.evaluation import show_columns
from superself.networks import CombinedNet, build_backbone, feature_width, tile_width
from superself.networks.modes import device_of
from superself.supervisor import Supervisor

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options

# Each turns a grid (B, R, C, ...) so that what is predicted lies further down than its context.
DIRECTIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda grid: grid,  # the context is above
    lambda grid: grid.flip(1),  # below
    lambda grid: grid.transpose(1, 2),  # on the left
    lambda grid: grid.transpose(1, 2).flip(1),  # on the right
)


class ContrastivePredictiveCodingSupervisor(Supervisor):
    """Cuts images into overlapping patches and predicts patches from those on one side of them, in four directions.

    Each patch (i, j) is augmented on its own and has features z_ij; a masked network turns the rows down to i into a context
    c_ij; W_k c_ij predicts the target t_{i+k,j} = V z_{i+k,j} among the targets t_l of all N patches of the batch:
    L = -log exp(s W_k c_ij . t_{i+k,j}) / sum_l exp(s W_k c_ij . t_l), averaged over patches, k and directions; chance: ln N.
    On images of another size than the networks were built for, patches and grid follow the images, and the W_k are used for
    the distances that both grids have.

    Source: Henaff et al., CPC v2, arXiv:1905.09272; context network, offset and scale of the pseudo-code in its appendix. Image
        patches: van den Oord et al., CPC, arXiv:1807.03748.
    Deviations: one context network of 256 channels for all directions, with separate predictions for each; three distances,
        where the pseudo-code has only the nearest; patches that overlap by half; weaker augmentation of small patches.
    Args:
        dataset: see Supervisor, also for the options that are not listed here.
        augment: of each patch; True takes "cpc", or for patches of up to 32 pixels flips, colour jitter and greyscale.
        patch_size: in pixels; None takes a quarter of the shorter side, so that a square has 7 x 7 patches, and at least 16
            where that leaves 3 x 3 (32 pixels).
        stride: from one patch to the next, in pixels; None takes half a patch.
        steps: how many distances k are predicted, if the grid is large enough, starting at the smallest whose patches share
            no pixel with the context: 2 for patches that overlap by half.
        scale: s.
        layer_norm: replace each 2d batch norm of the backbone by layer norm, also in a module that is passed, in place: batch
            norm leaks information from one patch to another.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module; sees patches and, later, images.
        context: from features (B, R, C, D) to contexts (B, R, C, W) that see no row further down; None for MaskedContext.
        predictor: V, from features (N, D) to targets (N, E); None for a linear layer with E = 64.
        loss: of (logits (Q, N), positions of the targets (Q,)); None for the cross-entropy.
    Shape:
        batch of images (B, C, H, W) -> loss ().
    Raises:
        ValueError: if the patches leave nothing to predict.
    """

    presets = {"cpc-v2": {"patch_size": 80, "stride": 36}}
    family = "contrastive"
    paper = ("Hénaff et al. 2020", "https://arxiv.org/abs/1905.09272")
    good_for = "images of 64 pixels and more whose parts belong together; features without batch norm"
    compares_images = True  # the patches of all images of a batch are candidates
    smallest_image = 2
    loss_meaning = (
        "cross-entropy of finding a patch among all patches of the batch from those on one side of it; 0 is perfect"
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
        **options: Unpack[Options],
    ) -> None:
        super().__init__(None, dataset, loss, collate_fn, augment=augment, **options)
        for name, value in (("patch_size", patch_size), ("stride", stride)):
            if value is not None:
                require_count(name, value, "is a length in pixels")
        require_count("steps", steps, "is the number of distances to predict")
        require_positive("scale", scale, "multiplies the scores")
        require_bool("layer_norm", layer_norm, "replaces batch norm by layer norm")
        self.patch_size, self.stride, self.steps = patch_size, stride, steps
        self.scale, self.layer_norm = scale, layer_norm
        self.given.backbone, self.given.context, self.given.predictor = backbone, context, predictor

    def _build(self) -> None:
        self.loss = self.given.loss or nn.CrossEntropyLoss()
        size, _, grid, self._built_distances = self._geometry(self.network_shape)
        norm = "layer" if self.layer_norm else "batch"
        backbone = build_backbone(self.given.backbone, self.network_shape, norm=norm)
        width = tile_width(backbone, self.network_shape, size, "a larger patch_size")
        predictor, context = self.given.predictor, self.given.context
        self.model = CombinedNet(backbone, nn.Linear(width, 64) if predictor is None else predictor)  # z, then V z
        device = device_of(backbone)
        self.context = (MaskedContext(width) if context is None else context).to(device)
        embedding = feature_width(self.model, (self.network_shape[0], size, size))
        seen = self.context(torch.zeros(1, *grid, width, device=device)).shape[-1]
        self.linear = nn.ModuleList(nn.Linear(seen, len(ks) * embedding) for ks in self._built_distances)  # W_k

    def _build_views(self) -> None:
        size, stride, self.grid, distances = self._geometry(self.view_shape)
        pairs = zip(self._built_distances, distances, strict=True)
        self.distances = [[k for k in built if k in ks] for built, ks in pairs]  # k of each direction
        if not any(self.distances):
            raise ValueError(
                f"the stored run predicts patches at distances of {_listed(self._built_distances)}, and patches of {size} pixels "
                f"every {stride} pixels on images of {self.view_shape[1]} x {self.view_shape[2]} have {_listed(distances)}; pass "
                "patch_size and stride in the ratio of the stored run."
            )
        self.augmentation = recipe("plain", self.view_shape[1:], views=1)  # of images: ``augment`` is for patches
        self.patches = OverlappingPatches(size, stride)
        self.augment_patches = recipe(self.augment, size, views=1, default=default_augment(size))

    def _forward(self, data: Batch) -> Tensor:
        (images,) = self.raw_views(data)  # (B, C, H, W)
        patches = self.preprocessing(self._inputs(images))  # (N, C, S, S) with N = B * R * C
        z = self.model.features(patches)  # (N, D)
        targets = gather(self.model.predictor(z))  # (N, E), of all processes
        pairs = self._predictions(z.unflatten(0, (len(images), *self.grid)))
        return torch.stack([self.loss(self._scores(found, targets), sought) for found, sought in pairs]).mean()

    def _predictions(self, z: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each direction and k: predictions (Q, E) from features (B, R, C, D), and the positions of their targets (Q,)."""
        count = z.shape[:3].numel()
        first = rank() * count  # among the patches of all processes
        positions = torch.arange(first, first + count, device=z.device).view(z.shape[:3])
        pairs = []
        for turn, linear, built, distances in zip(
            DIRECTIONS, self.linear, self._built_distances, self.distances, strict=True
        ):
            parts = linear(self.context(turn(z))).chunk(len(built), -1)  # W_k c for each k, (B, R, C, E)
            predictions = dict(zip(built, parts, strict=True))
            for k in distances:  # the target is in the same column, k rows further down
                pairs.append((predictions[k][:, :-k].flatten(0, 2), turn(positions)[:, k:].flatten()))
        return pairs

    def _inputs(self, images: Tensor) -> Tensor:
        """The patches of images (B, C, H, W), each augmented on its own -> (B * R * C, C, S, S) in [0, 1]."""
        return self.augment_patches(self.patches(images).flatten(0, 1), self.generator)[0]

    def _scores(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Logits (Q, N) of predictions (Q, E) and the targets (N, E) of all patches."""
        with torch.autocast(targets.device.type, enabled=False):
            return self.scale * predictions.float() @ targets.float().T

    def _geometry(self, shape: tuple[int, int, int]) -> tuple[int, int, tuple[int, int], list[range]]:
        """Patch size, stride, grid (R, C) and the distances k of the four directions, for images of ``shape``."""
        sides = shape[1:]
        size = self.patch_size or min(max(16, min(sides) // 8 * 2), min(sides) // 2)
        stride = self.stride or max(1, size // 2)
        grid = tuple((side - size) // stride + 1 for side in sides)
        nearest = math.ceil(size / stride)  # the smallest k whose patches share no pixel with the context
        if min(grid) <= nearest:
            raise ValueError(
                f"patches of {size} pixels every {stride} pixels give a grid of {grid[0]} x {grid[1]} on images of "
                f"{sides[0]} x {sides[1]}, and {nearest + 1} x {nearest + 1} is the least; pass a smaller patch_size or larger "
                "images."
            )
        lengths = (grid[0], grid[0], grid[1], grid[1])  # of the four directions
        return size, stride, grid, [range(nearest, min(nearest + self.steps, n)) for n in lengths]

    @property
    def chance_loss(self) -> float | None:
        """ln N for the N patches of a batch; None before the batch size is known."""
        return None if self.run is None else math.log(self.run.settings.batch_size * math.prod(self.grid))

    def show_inputs(self, path: str | Path, dataset: Any = None, count: int = 8) -> Path:
        """Writes a PNG with a row for each image: the image, its patches, and its patches as the network gets them.

        Args:
            path: of the file; missing folders are made.
            dataset: anything that ``open_images`` takes; None takes the images that are trained on.
            count: rows.
        """

        def columns(images: Tensor) -> list[Tensor]:
            (views,) = self.raw_views(Batch(images))
            grids = [self._as_grid(patches) for patches in (self.patches(views).flatten(0, 1), self._inputs(views))]
            return [F.interpolate(to_float(views), size=grids[0].shape[2:]), *grids]

        titles = ["image", "its patches", "patches as the network gets them"]
        return show_columns(self, columns, path, dataset, count, titles=titles, title="CPC: what the network gets")

    def _as_grid(self, patches: Tensor) -> Tensor:
        """Patches (B * R * C, C, S, S) side by side, one white pixel around each -> (B, C, R * (S + 2), C * (S + 2))."""
        patches = F.pad(patches, (1, 1, 1, 1), value=1.0).unflatten(0, (-1, *self.grid))
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


class MaskedContext(nn.Module):
    """A context for every patch of a grid, computed from the patches of its row and of the rows above.

    Each block looks one column to each side and one row up. No weight looks down, so nothing needs to be masked.

    Source: Henaff et al., CPC v2, arXiv:1905.09272, pseudo-code of the appendix (pixelCNN).
    Deviations: features are brought to ``width`` channels first, where the paper works on all of them.
    Args:
        features: D, width of the features of a patch.
        width: of the contexts.
        blocks: residual blocks, each of which looks one row further up and one column further to each side.
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
    """The residual branch of a block of MaskedContext: convolutions of 1 x 1, 1 x 3, 2 x 1 and 1 x 1, as linear layers.

    Shape:
        (B, R, C, width) -> (B, R, C, width).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(width, width), nn.Linear(width, width)
        self.sideways, self.up = nn.Linear(3 * width, width), nn.Linear(2 * width, width)

    def forward(self, c: Tensor) -> Tensor:
        """The residual (B, R, C, width)."""
        c = F.pad(self.enter(c).relu(), (0, 0, 1, 1))  # a column of zeros on each side
        c = self.sideways(torch.cat([c[:, :, :-2], c[:, :, 1:-1], c[:, :, 2:]], -1))
        c = F.pad(c, (0, 0, 0, 0, 1, 0))  # a row of zeros on top
        return self.leave(self.up(torch.cat([c[:, :-1], c[:, 1:]], -1)).relu())


def default_augment(size: int) -> str | Transform:
    """What ``augment=True`` stands for: the recipe "cpc", or something weaker for patches of up to 32 pixels."""
    if not is_small(size):
        return "cpc"
    return Compose([RandomHorizontalFlip(), ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8), RandomGrayscale(0.25)])


def _listed(distances: list[range]) -> str:
    return ", ".join(map(str, sorted({k for ks in distances for k in ks})))
