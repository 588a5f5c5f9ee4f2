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
from superself.data import to_float
from superself.evaluation.figures import show_columns
from superself.networks import CombinedNet, build_backbone, feature_width, tile_width
from superself.supervisor import Supervisor

DIRECTIONS: tuple[
    Callable[[Tensor], Tensor], ...
] = (  # turn (B, R, C, ...) so that what is predicted lies further down
    lambda grid: grid,  # from what lies above
    lambda grid: grid.flip(1),  # from below
    lambda grid: grid.transpose(1, 2),  # from the left
    lambda grid: grid.transpose(1, 2).flip(1),  # from the right
)


class ContrastivePredictiveCodingSupervisor(Supervisor):
    """Cuts images into overlapping patches and predicts patches from all that lie on one side of them, in four directions.

    Each patch (i, j) is changed on its own and embedded as z_ij; a masked network makes of the rows down to i a context c_ij;
    W_k c_ij predicts the target t_{i+k,j} = V z_{i+k,j} among the targets t_l of all N patches of the batch:
    L = -log exp(s W_k c_ij . t_{i+k,j}) / sum_l exp(s W_k c_ij . t_l), averaged over patches, k and directions; chance is ln N.

    Source: Henaff et al., CPC v2, arXiv:1905.09272; context network, offset and scale of the pseudo-code in its appendix, read in
        a public copy. Image patches: van den Oord et al., CPC, arXiv:1807.03748.
    Deviations: one context network of 256 channels for all directions, with predictions of their own for each; three distances,
        where the pseudo-code has the nearest alone; patches that overlap by half; small patches are changed less (see
        ``augment``); Adam without the clipping of gradients.
        Tried on CIFAR-10 with mobilenet_v3_small, patches of 16, batches of 64 and about 100 steps, one seed, by a prototype
        of the same equations: kNN and linear accuracy 23.1 and 27.4 % with the weak changes, 18.1 and
        22.3 % with "cpc", 17 and 20 % without training. Patches of 8 cost 1.6 to 6 times as much in the backbone; what they
        learn was not measured.
    Args:
        dataset: see Supervisor, as are the options that are not listed here.
        augment: name of a recipe or transform that changes each patch; None takes "cpc", and for patches of up to 32 pixels
            flips, jitter of colours and greyscale.
        patch_size: in pixels; None takes a quarter of the shorter side, so that a square has 7 x 7 patches, and at least 16
            where that leaves 3 x 3 (32 pixels).
        stride: from one patch to the next, in pixels; None takes half a patch.
        steps: how many distances k are predicted, as far as the grid has them, from the nearest whose patches share no pixel
            with the context on: 2 for patches that overlap by half.
        scale: s.
        layer_norm: put layer norm in place of each 2d batch norm of the backbone, also of a module of one's own, in place:
            batch norm lets patches tell each other what they show.
        backbone: None for EfficientFeatures, a torchvision name, "timm:NAME", or a module; sees patches and, later, images.
        context: from features (B, R, C, D) to contexts (B, R, C, W) that see no row further down; None for MaskedContext.
        predictor: V, from features (N, D) to targets (N, E); None for a linear layer with E = 64.
        loss: of (logits (Q, N), places of the targets (Q,)); None for the cross-entropy.
    Shape:
        data: images (B, C, H, W) and their places (B,) -> loss ().
    Raises:
        ValueError: if the patches leave nothing to predict.
    """

    family = "contrastive"
    loss_meaning = (
        "cross-entropy of finding a patch among all of the batch from what lies on one side of it; 0 is perfect"
    )
    likely_causes = (
        "the learning rate is too high for this optimiser (try a tenth of it)",
        "the patches are so small, or changed so much, that they tell nothing of their neighbours",
        "the images are textures without parts that belong together",
    )

    def __init__(
        self,
        dataset: Any = None,
        augment: str | Callable[..., Any] | None = None,
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
        super().__init__(None, dataset, loss or nn.CrossEntropyLoss(), collate_fn, **options)
        channels, *sides = self.images.shape
        size = min(max(16, min(sides) // 8 * 2), min(sides) // 2) if patch_size is None else patch_size
        stride = max(1, size // 2) if stride is None else stride
        if size < 1 or stride < 1 or steps < 1:
            raise ValueError(
                f"patch_size={size}, stride={stride}, steps={steps} predict nothing; pass at least 1 of each."
            )
        self.grid = tuple((side - size) // stride + 1 for side in sides)  # R, C
        nearest = math.ceil(size / stride)  # the first k whose patches share no pixel with the context
        if min(self.grid) <= nearest:
            raise ValueError(
                f"patches of {size} pixels every {stride} pixels give a grid of {self.grid[0]} x {self.grid[1]} on images of "
                f"{sides[0]} x {sides[1]}, and {nearest + 1} x {nearest + 1} is the least; pass a smaller patch_size or larger "
                "images."
            )
        self.scale = scale
        self.patches = OverlappingPatches(size, stride)
        self.views = recipe(augment or default_changes(size), size, views=1)
        backbone = build_backbone(backbone, self.images.shape, norm="layer" if layer_norm else "batch")
        width = tile_width(backbone, self.images.shape, size, "a larger patch_size")
        self.model = CombinedNet(backbone, nn.Linear(width, 64) if predictor is None else predictor)  # z, then V z
        self.context = MaskedContext(width) if context is None else context
        embedding = feature_width(self.model, (channels, size, size))
        seen = self.context(torch.zeros(1, *self.grid, width)).shape[-1]
        self.distances = [range(nearest, min(nearest + steps, n)) for n in (self.grid[0],) * 2 + (self.grid[1],) * 2]
        self.linear = nn.ModuleList(nn.Linear(seen, len(ks) * embedding) for ks in self.distances)  # W_k

    @property
    def chance_loss(self) -> float | None:
        """ln N for the N patches of a batch; None before it is known how many images that has."""
        settings = getattr(self, "settings", None)
        return settings and math.log(settings["batch_size"] * math.prod(self.grid))

    def _forward(self, data: tuple[Tensor, Tensor]) -> Tensor:
        patches = self.preprocessing(self._inputs(data[0]))  # (N, C, S, S) with N = B * R * C
        z = self.model.features(patches)  # (N, D)
        targets = self.model.predictor(z)  # (N, E)
        pairs = self._predictions(z.unflatten(0, (-1, *self.grid)))
        return torch.stack([self.loss(self._scores(found, targets), sought) for found, sought in pairs]).mean()

    def _predictions(self, z: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each direction and k: predictions (Q, E) from features (B, R, C, D), and which of the B * R * C they mean."""
        places = torch.arange(z.shape[:3].numel(), device=z.device).view(z.shape[:3])
        pairs = []
        for turn, linear, distances in zip(DIRECTIONS, self.linear, self.distances, strict=True):
            predictions = linear(self.context(turn(z))).chunk(len(distances), -1)  # each (B, R, C, E)
            for k, prediction in zip(distances, predictions, strict=True):  # the same column, k rows further down
                pairs.append((prediction[:, :-k].flatten(0, 2), turn(places)[:, k:].flatten()))
        return pairs

    def _inputs(self, images: Tensor) -> Tensor:
        """The patches of images (B, C, H, W), each changed on its own -> (B * R * C, C, S, S) in [0, 1]."""
        return self.views(self.patches(images).flatten(0, 1), self.generator)[0]

    def _scores(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Logits (Q, N) of predictions (Q, E) and the targets (N, E) of all patches."""
        with torch.autocast(targets.device.type, enabled=False):
            return self.scale * predictions.float() @ targets.float().T

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


def default_changes(size: int) -> str | Transform:
    """The recipe "cpc" for large patches; for small ones changes that leave more of them."""
    if not is_small(size):
        return "cpc"
    return Compose([RandomHorizontalFlip(), ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8), RandomGrayscale(0.25)])
