"""lightly's algorithms in the loop of its documentation. lightly is only imported when one of them is built.

Each is made of lightly's modules, losses and transforms, as in its folder examples/pytorch, with the heads, temperatures and
momenta of superself's defaults where both leave them open, so that the two differ in their code and not in their settings.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from bench.report import CORES
from superself.augment.recipes import is_small, small_size
from superself.data import Preprocessing
from superself.networks import feature_width, pool_features
from superself.training import make_lr_scheduler

MISSING = 'lightly is not installed, so only superself is measured; pip install -e ".[bench]" installs it.'


def has_lightly() -> bool:
    """Whether lightly is installed."""
    return importlib.util.find_spec("lightly") is not None


def frozen_copy(network: nn.Module) -> nn.Module:
    """A copy that gets no gradient, for a momentum encoder."""
    return copy.deepcopy(network).requires_grad_(False)


class Peer(nn.Module):
    """A backbone and a projection head; subclasses add the rest.

    Args:
        backbone: with random weights.
        head: maps its features to embeddings.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.projection_head = backbone, head

    @staticmethod
    def transform(size: int, preprocessing: Preprocessing) -> Callable[[Image.Image], Any]:
        """lightly's views, blurred if those of superself are, and normalised with the same mean and std."""
        raise NotImplementedError

    def embed(self, view: Tensor) -> Tensor:
        """Embeddings of a view."""
        return self.projection_head(pool_features(self.backbone(view)))

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        """The loss of a batch of views; two views without a momentum encoder unless a subclass says otherwise."""
        first, second = views
        return self.criterion(self.embed(first), self.embed(second))

    def before_step(self, step: int, total_steps: int) -> None:
        """Moves a momentum encoder."""

    def after_backward(self, step: int, total_steps: int) -> None:
        """Between the backward pass and the optimizer's step."""


def view_options(size: int, preprocessing: Preprocessing, **options: Any) -> dict[str, Any]:
    """Arguments of lightly's transforms: blurred if the views of superself are, with the same mean and std."""
    blur = {"gaussian_blur": 0.0} if is_small(size) else {}
    return {**blur, "normalize": {"mean": list(preprocessing.mean), "std": list(preprocessing.std)}, **options}


def byol_views(size: int, preprocessing: Preprocessing) -> Callable[[Image.Image], Any]:
    """lightly's two views of BYOL."""
    from lightly.transforms import BYOLTransform
    from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform

    options = view_options(size, preprocessing, input_size=size)
    return BYOLTransform(BYOLView1Transform(**options), BYOLView2Transform(**options))


class LightlyBYOL(Peer):
    """BYOL. The momentum rises with every step, in the example with every epoch; heads of 4096 / 256 units as in the paper."""

    transform = staticmethod(byol_views)

    def __init__(self, backbone: nn.Module, shape: tuple[int, int, int], momentum: float = 0.996) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead

        super().__init__(backbone, BYOLProjectionHead(feature_width(backbone, shape), 4096, 256))
        self.momentum = momentum
        self.prediction_head = BYOLPredictionHead(256, 4096, 256)
        self.backbone_momentum = frozen_copy(backbone)
        self.projection_head_momentum = frozen_copy(self.projection_head)
        self.criterion = NegativeCosineSimilarity()

    @torch.no_grad()
    def target(self, view: Tensor) -> Tensor:
        """The target's embedding."""
        return self.projection_head_momentum(pool_features(self.backbone_momentum(view))).detach()

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        """Both directions, averaged."""
        first, second = views
        p0, z0 = self.prediction_head(self.embed(first)), self.target(first)
        p1, z1 = self.prediction_head(self.embed(second)), self.target(second)
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))

    def before_step(self, step: int, total_steps: int) -> None:
        from lightly.models.utils import update_momentum
        from lightly.utils.scheduler import cosine_schedule

        momentum = cosine_schedule(step, total_steps, self.momentum, 1)
        update_momentum(self.backbone, self.backbone_momentum, m=momentum)
        update_momentum(self.projection_head, self.projection_head_momentum, m=momentum)


class LightlyMoCo(Peer):
    """MoCo v2, with queue, temperature and momentum as in superself; the momentum is constant, as in the paper."""

    def __init__(
        self, backbone: nn.Module, shape: tuple[int, int, int], momentum: float = 0.999, temperature: float = 0.2
    ) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import MoCoProjectionHead

        width = feature_width(backbone, shape)
        super().__init__(backbone, MoCoProjectionHead(width, min(width, 2048), 128))
        self.momentum = momentum
        self.backbone_momentum = frozen_copy(backbone)
        self.projection_head_momentum = frozen_copy(self.projection_head)
        self.criterion = NTXentLoss(temperature=temperature, memory_bank_size=(4096, 128))

    @staticmethod
    def transform(size: int, preprocessing: Preprocessing) -> Callable[[Image.Image], Any]:
        from lightly.transforms import MoCoV2Transform

        return MoCoV2Transform(**view_options(size, preprocessing, input_size=size))

    @torch.no_grad()
    def keys(self, view: Tensor) -> Tensor:
        """Keys computed in a shuffled batch, in the order of the images."""
        from lightly.models.utils import batch_shuffle, batch_unshuffle

        shuffled, order = batch_shuffle(view)
        keys = self.projection_head_momentum(pool_features(self.backbone_momentum(shuffled)))
        return batch_unshuffle(keys, order)

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        """Finds the key of each query; queries come from the first view and keys from the second."""
        first, second = views
        return self.criterion(self.embed(first), self.keys(second))

    def before_step(self, step: int, total_steps: int) -> None:
        from lightly.models.utils import update_momentum

        update_momentum(self.backbone, self.backbone_momentum, m=self.momentum)
        update_momentum(self.projection_head, self.projection_head_momentum, m=self.momentum)


class LightlySimCLR(Peer):
    """SimCLR."""

    def __init__(self, backbone: nn.Module, shape: tuple[int, int, int], temperature: float = 0.5) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead

        width = feature_width(backbone, shape)
        super().__init__(backbone, SimCLRProjectionHead(width, width, 128))
        self.criterion = NTXentLoss(temperature)

    @staticmethod
    def transform(size: int, preprocessing: Preprocessing) -> Callable[[Image.Image], Any]:
        from lightly.transforms import SimCLRTransform

        strength = 0.5 if is_small(size) else 1.0
        return SimCLRTransform(**view_options(size, preprocessing, input_size=size, cj_strength=strength))


class LightlySimSiam(Peer):
    """SimSiam; the learning rate of the predictor is scheduled with the others, as in the example."""

    def __init__(self, backbone: nn.Module, shape: tuple[int, int, int]) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead

        super().__init__(backbone, SimSiamProjectionHead(feature_width(backbone, shape), 2048, 2048))
        self.prediction_head = SimSiamPredictionHead(2048, 512, 2048)
        self.criterion = NegativeCosineSimilarity()

    @staticmethod
    def transform(size: int, preprocessing: Preprocessing) -> Callable[[Image.Image], Any]:
        from lightly.transforms import SimSiamTransform

        return SimSiamTransform(**view_options(size, preprocessing, input_size=size))

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        """Both directions, averaged."""
        z0, z1 = (self.embed(view) for view in views)
        p0, p1 = self.prediction_head(z0), self.prediction_head(z1)
        return 0.5 * (self.criterion(z0.detach(), p1) + self.criterion(z1.detach(), p0))


class LightlyBarlowTwins(Peer):
    """Barlow Twins with the example's projector of 2048 units."""

    transform = staticmethod(byol_views)

    def __init__(self, backbone: nn.Module, shape: tuple[int, int, int]) -> None:
        from lightly.loss import BarlowTwinsLoss
        from lightly.models.modules import BarlowTwinsProjectionHead

        super().__init__(backbone, BarlowTwinsProjectionHead(feature_width(backbone, shape), 2048, 2048))
        self.criterion = BarlowTwinsLoss()


class LightlyVICReg(Peer):
    """VICReg with the example's projector of 2048 units."""

    def __init__(self, backbone: nn.Module, shape: tuple[int, int, int]) -> None:
        from lightly.loss import VICRegLoss
        from lightly.models.modules.heads import VICRegProjectionHead

        super().__init__(backbone, VICRegProjectionHead(feature_width(backbone, shape), 2048, 2048, num_layers=2))
        self.criterion = VICRegLoss()

    @staticmethod
    def transform(size: int, preprocessing: Preprocessing) -> Callable[[Image.Image], Any]:
        from lightly.transforms import VICRegTransform

        return VICRegTransform(**view_options(size, preprocessing, input_size=size))


class LightlySwaV(Peer):
    """SwAV with the example's 512 prototypes and six small crops."""

    def __init__(self, backbone: nn.Module, shape: tuple[int, int, int]) -> None:
        from lightly.loss import SwaVLoss
        from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes

        width = feature_width(backbone, shape)
        super().__init__(backbone, SwaVProjectionHead(width, width, 128))
        self.prototypes = SwaVPrototypes(128, n_prototypes=512)
        self.criterion = SwaVLoss()

    @staticmethod
    def transform(size: int, preprocessing: Preprocessing) -> Callable[[Image.Image], Any]:
        from lightly.transforms import SwaVTransform

        return SwaVTransform(**view_options(size, preprocessing, crop_sizes=(size, small_size(size)[0])))

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        """Codes of the two large crops, predicted from all the others."""
        self.prototypes.normalize()
        scores = [self.prototypes(nn.functional.normalize(self.embed(view), dim=1)) for view in views]
        return self.criterion(scores[:2], scores[2:])


class LightlyDINO(Peer):
    """DINO with the example's head and six small crops; a run counts as ten epochs for the warm-up and the frozen layer."""

    epochs = 10

    def __init__(self, backbone: nn.Module, shape: tuple[int, int, int], momentum: float = 0.996) -> None:
        from lightly.loss import DINOLoss
        from lightly.models.modules import DINOProjectionHead

        width = feature_width(backbone, shape)
        super().__init__(backbone, DINOProjectionHead(width, 512, 64, 2048, freeze_last_layer=1))
        self.momentum, self.epoch = momentum, 0
        self.teacher_backbone = frozen_copy(backbone)
        self.teacher_head = DINOProjectionHead(width, 512, 64, 2048).requires_grad_(False)
        self.teacher_head.load_state_dict(self.projection_head.state_dict())
        self.criterion = DINOLoss(output_dim=2048, warmup_teacher_temp_epochs=5)

    @staticmethod
    def transform(size: int, preprocessing: Preprocessing) -> Callable[[Image.Image], Any]:
        from lightly.transforms import DINOTransform

        options = view_options(size, preprocessing, global_crop_size=size, local_crop_size=small_size(size)[0])
        if "gaussian_blur" in options:
            options["gaussian_blur"] = (0.0, 0.0, 0.0)  # of each kind of view
        return DINOTransform(**options)

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        """The teacher sees the two large crops, the student all."""
        with torch.no_grad():
            teacher = [self.teacher_head(pool_features(self.teacher_backbone(view))) for view in views[:2]]
        return self.criterion(teacher, [self.embed(view) for view in views], epoch=self.epoch)

    def before_step(self, step: int, total_steps: int) -> None:
        from lightly.models.utils import update_momentum
        from lightly.utils.scheduler import cosine_schedule

        self.epoch = self.epochs * step // total_steps
        momentum = cosine_schedule(step, total_steps, self.momentum, 1)
        update_momentum(self.backbone, self.teacher_backbone, m=momentum)
        update_momentum(self.projection_head, self.teacher_head, m=momentum)

    def after_backward(self, step: int, total_steps: int) -> None:
        self.projection_head.cancel_last_layer_gradients(current_epoch=self.epoch)


PEERS: dict[str, type[Peer]] = {
    "barlow_twins": LightlyBarlowTwins,
    "byol": LightlyBYOL,
    "dino": LightlyDINO,
    "moco": LightlyMoCo,
    "simclr": LightlySimCLR,
    "simsiam": LightlySimSiam,
    "swav": LightlySwaV,
    "vicreg": LightlyVICReg,
}


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
    model: Peer,
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
    for step, views in enumerate(loader):
        model.before_step(step, total_steps)
        views = [view.to(device) for view in views]
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = model.loss(views)
        total_loss = total_loss + loss.detach()
        loss.backward()
        model.after_backward(step, total_steps)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        yield step + 1
