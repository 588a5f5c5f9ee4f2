"""One row per algorithm: how to make it small. The contract in test_contract.py runs every row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import superself
from superself import Supervisor
from superself.joint_embedding import JointEmbedding
from superself.networks import LabHalves


class TinyBackbone(nn.Module):
    """Two convolutions with batch norm, to feature maps (B, width, h, w); always the same initial weights."""

    def __init__(self, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Conv2d(channels, 8, 3, stride=2, padding=1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, width, 3, stride=2, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def sharp_backbone(channels: int = 3) -> TinyBackbone:
    """A tiny backbone whose features differ so much that random heads tell images apart."""
    backbone = TinyBackbone(channels)
    nn.init.constant_(backbone.layers[4].weight, 20.0)  # the last batch norm
    return backbone


def tiny_halves(channels: int = 3) -> LabHalves:
    """A tiny backbone for the lightness and one for the colours of RGB images, with 16 features together."""
    return LabHalves(TinyBackbone(1, width=8), TinyBackbone(2, width=8))


def tiny_images(n: int = 16, channels: int = 3, size: tuple[int, int] = (16, 16), seed: int = 0) -> Tensor:
    """Images with an up and a down: a gradient from dark to bright, in colours and with noise of their own."""
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0, 160, size[0]).view(1, 1, -1, 1)
    colour = torch.rand(n, channels, 1, 1, generator=generator) * 60
    noise = torch.rand(n, channels, *size, generator=generator) * 30
    return (ramp + colour + noise).to(torch.uint8)


@dataclass(frozen=True)
class Case:
    """An algorithm and the arguments that make it small enough for a test.

    ``channels``: those of the images that it accepts.
    ``loss_falls``: false for a game of two players, where no loss need fall, and where it rises while a queue fills,
        and where the targets change during the run.
    ``mixes_batch``: false where the features of an image must not depend on the other images, in train mode too.
    ``normalizes``: false where the network gets RGB in [0, 1], or tiles that are standardised on their own.
    ``exports_average``: whether the exported backbone is a moving average of the one that was passed.
    ``local``: what a process computes from its own share of the batch because the paper wants it so; everything else is
        as in one process with the whole batch.
    ``waiting``: how the names of parameters begin that get no gradient in some steps, such as those of heads that take turns.
    """

    algorithm: type[Supervisor]
    arguments: dict[str, Any] = field(default_factory=dict)
    backbone: Callable[[], nn.Module] = TinyBackbone
    lr: float = 1e-2
    channels: tuple[int, ...] = (1, 3, 4)
    loss_falls: bool = True
    mixes_batch: bool = True
    normalizes: bool = True
    local: str = ""
    waiting: tuple[str, ...] = ()
    exports_average: bool = False

    def make(self, dataset: Any = None, **arguments: Any) -> Supervisor:
        """A supervisor on sixteen tiny images, or on ``dataset``."""
        dataset = tiny_images() if dataset is None else dataset
        return self.algorithm(dataset, **{"backbone": self.backbone(), "seed": 0, **self.arguments, **arguments})

    @property
    def embeds(self) -> bool:
        """Whether it has embeddings that can collapse."""
        return issubclass(self.algorithm, JointEmbedding)


SMALL = {"hidden": 64, "out_features": 64}  # of a projector

CASES = [
    Case(superself.BarlowTwinsSupervisor, {"projector": SMALL, "scale": 1e-3}),  # a sum over features: rounding shows
    Case(superself.BiGanSupervisor, {"latent": 4}, lr=1e-3, loss_falls=False),
    Case(superself.BYOLSupervisor, {"momentum": 0.9}, lr=1e-3),
    Case(superself.ContextNetSupervisor),
    Case(superself.ContrastiveMultiviewCodingSupervisor, backbone=tiny_halves, channels=(3,), normalizes=False),
    Case(superself.ContrastivePredictiveCodingSupervisor, lr=1e-3, mixes_batch=False),
    Case(superself.DeepClusterSupervisor, {"clusters": 4, "mult": 2}, loss_falls=False),
    Case(superself.DeepClusterV2Supervisor, {"clusters": 4}, lr=1e-3),
    Case(superself.DenoiseNetSupervisor),
    Case(
        superself.DetConSupervisor,
        {"num_samples": 4, "scale": 60.0, "momentum": 0.996, "projector": {"hidden": 32}, "predictor": {"hidden": 32}},
    ),
    Case(
        superself.DINOSupervisor,
        {
            "momentum": 0.9,
            "augment": {"name": "dino", "small_count": 2},
            "teacher_temperature": 0.05,
            "projector": {"hidden": 64},
        },
        lr=1e-3,
        loss_falls=False,
        exports_average=True,
    ),
    Case(superself.ExemplarNetSupervisor),
    Case(
        superself.IICSupervisor,
        {"clusters": 3, "over_clusters": 6, "heads": 2, "turns": (2, 1), "repeats": 2},
        backbone=sharp_backbone,
        waiting=("over_heads", "model.predictor"),
    ),
    Case(superself.InstanceDiscriminationSupervisor),
    Case(superself.JigsawNetSupervisor, normalizes=False),
    Case(superself.MoCoV3Supervisor, {"momentum": 0.9}),
    Case(
        superself.MomentumContrastSupervisor,
        {"queue_size": 32, "momentum": 0.9},
        loss_falls=False,
        local="batch norm, so that it sees a key next to other images than the query (Sec. 3.3)",
    ),
    Case(
        superself.NNCLRSupervisor,
        {"queue_size": 32, "projector": SMALL, "predictor": {"hidden": 64}},
        loss_falls=False,
    ),
    Case(superself.PIRLSupervisor),
    Case(superself.RotateNetSupervisor),
    Case(superself.SiameseSupervisor, {"queue_size": 32, "momentum": 0.9}, loss_falls=False),
    Case(superself.SimCLRSupervisor, lr=1e-3),
    Case(superself.SimSiamSupervisor, {"projector": SMALL}),
    Case(superself.SplitBrainNetSupervisor, backbone=tiny_halves, channels=(3,), normalizes=False),
    Case(
        superself.SwAVSupervisor,
        {"augment": {"name": "swav", "small_count": 2}, "projector": {"hidden": 64}, "queue_size": 8, "queue_from": 1},
        lr=1e-3,
    ),
    Case(superself.VICRegSupervisor, {"projector": SMALL}),
    Case(superself.WhiteningMSESupervisor, {"projector": {"out_features": 2, "hidden": 64}, "eps": 0.1}),
]
