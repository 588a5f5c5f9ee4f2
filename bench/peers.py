"""lightly's algorithms in the loop of its documentation. lightly is only imported when one of them is built."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from bench.report import CORES
from superself.augment.recipes import is_small
from superself.data import Preprocessing
from superself.networks import feature_width, pool_features
from superself.training import make_lr_scheduler

MISSING = 'lightly is not installed, so only superself is measured; pip install -e ".[bench]" installs it.'


def has_lightly() -> bool:
    """Whether lightly is installed."""
    return importlib.util.find_spec("lightly") is not None


class LightlyBYOL(nn.Module):
    """BYOL made of lightly's modules.

    Source: lightly, examples/pytorch/byol.py. Deviations: heads of 4096 / 256 units, as in the paper and in superself; the
    momentum rises with every step instead of every epoch.
    """

    def __init__(self, backbone: nn.Module, shape: tuple[int, int, int], momentum: float = 0.996) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        super().__init__()
        self.backbone, self.momentum = backbone, momentum
        self.projection_head = BYOLProjectionHead(feature_width(backbone, shape), 4096, 256)
        self.prediction_head = BYOLPredictionHead(256, 4096, 256)
        self.backbone_momentum = copy.deepcopy(backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NegativeCosineSimilarity()

    @staticmethod
    def transform(size: int, preprocessing: Preprocessing) -> Callable[[Image.Image], Any]:
        """lightly's two views, blurred if those of superself are, and normalised with the same mean and std."""
        from lightly.transforms import BYOLTransform
        from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform

        options: dict[str, Any] = {"gaussian_blur": 0.0} if is_small(size) else {}
        options["normalize"] = {"mean": list(preprocessing.mean), "std": list(preprocessing.std)}
        return BYOLTransform(
            BYOLView1Transform(input_size=size, **options), BYOLView2Transform(input_size=size, **options)
        )

    def predict(self, view: Tensor) -> Tensor:
        """The online prediction."""
        return self.prediction_head(self.projection_head(pool_features(self.backbone(view))))

    @torch.no_grad()
    def target(self, view: Tensor) -> Tensor:
        """The target's embedding."""
        return self.projection_head_momentum(pool_features(self.backbone_momentum(view))).detach()

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """Both directions, averaged."""
        p0, z0 = self.predict(first), self.target(first)
        p1, z1 = self.predict(second), self.target(second)
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))

    def before_step(self, step: int, total_steps: int) -> None:
        """Moves the target."""
        from lightly.models.utils import update_momentum
        from lightly.utils.scheduler import cosine_schedule

        momentum = cosine_schedule(step, total_steps, self.momentum, 1)
        update_momentum(self.backbone, self.backbone_momentum, m=momentum)
        update_momentum(self.projection_head, self.projection_head_momentum, m=momentum)


class LightlyMoCo(nn.Module):
    """MoCo v2 made of lightly's modules, with queue, temperature and momentum as in superself.

    Source: lightly, examples/pytorch/moco.py. Deviations: the momentum is constant, as in the paper.
    """

    def __init__(self, backbone: nn.Module, shape: tuple[int, int, int], momentum: float = 0.999) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import MoCoProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        super().__init__()
        self.backbone, self.momentum = backbone, momentum
        width = feature_width(backbone, shape)
        self.projection_head = MoCoProjectionHead(width, min(width, 2048), 128)
        self.backbone_momentum = copy.deepcopy(backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NTXentLoss(temperature=0.2, memory_bank_size=(4096, 128))

    @staticmethod
    def transform(size: int, preprocessing: Preprocessing) -> Callable[[Image.Image], Any]:
        """lightly's two views, blurred if those of superself are, and normalised with the same mean and std."""
        from lightly.transforms import MoCoV2Transform

        options: dict[str, Any] = {"gaussian_blur": 0.0} if is_small(size) else {}
        options["normalize"] = {"mean": list(preprocessing.mean), "std": list(preprocessing.std)}
        return MoCoV2Transform(input_size=size, **options)

    @torch.no_grad()
    def keys(self, view: Tensor) -> Tensor:
        """Keys computed in a shuffled batch, in the order of the images."""
        from lightly.models.utils import batch_shuffle, batch_unshuffle

        shuffled, order = batch_shuffle(view)
        keys = self.projection_head_momentum(pool_features(self.backbone_momentum(shuffled)))
        return batch_unshuffle(keys, order)

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """Finds the key of each query; queries come from the first view and keys from the second."""
        return self.criterion(self.projection_head(pool_features(self.backbone(first))), self.keys(second))

    def before_step(self, step: int, total_steps: int) -> None:
        """Moves the key encoder."""
        from lightly.models.utils import update_momentum

        update_momentum(self.backbone, self.backbone_momentum, m=self.momentum)
        update_momentum(self.projection_head, self.projection_head_momentum, m=self.momentum)


PEERS = {"byol": LightlyBYOL, "moco": LightlyMoCo}


class Views(Dataset):
    """Decoded images that go through a transform one by one."""

    def __init__(self, images: Tensor, transform: Callable[[Image.Image], Any]) -> None:
        pixels = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()  # (N, H, W, 3)
        self.pictures, self.transform = [Image.fromarray(image) for image in pixels], transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> Any:
        return self.transform(self.pictures[i])


def lightly_loop(
    model: nn.Module,
    images: Tensor,
    transform: Callable[[Image.Image], Any],
    total_steps: int,
    batch_size: int,
    lr: float,
    lr_scheduler: Callable[..., Any] | None = None,
    bfloat16: bool = False,
) -> Iterator[int]:
    """The loop of lightly's examples on the device of the model; yields the number of steps so far after each step.

    A single loader serves all epochs, which spares it the new workers that the examples start in every epoch.
    """
    device = next(model.parameters()).device
    dataset = Views(images, transform)
    order = RandomSampler(dataset, num_samples=total_steps * batch_size)
    loader = DataLoader(dataset, batch_size, sampler=order, drop_last=True, num_workers=CORES)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    schedule = make_lr_scheduler(lr_scheduler, optimizer, total_steps, steps_per_epoch=total_steps)
    total_loss = torch.zeros((), device=device)
    for step, (first, second) in enumerate(loader):
        model.before_step(step, total_steps)
        first, second = first.to(device), second.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = model.loss(first, second)
        total_loss += loss.detach()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        yield step + 1
