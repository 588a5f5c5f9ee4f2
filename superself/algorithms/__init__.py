"""One file per algorithm; the registry is what is imported here."""

from __future__ import annotations

from typing import Any

from superself.algorithms.bigan import BiGanSupervisor
from superself.algorithms.byol import BYOLSupervisor
from superself.algorithms.cmc import ContrastiveMultiviewCodingSupervisor
from superself.algorithms.context_encoder import ContextNetSupervisor
from superself.algorithms.cpc import ContrastivePredictiveCodingSupervisor
from superself.algorithms.denoising_autoencoder import DenoiseNetSupervisor
from superself.algorithms.exemplarnet import ExemplarNetSupervisor
from superself.algorithms.instance_discrimination import InstanceDiscriminationSupervisor
from superself.algorithms.jigsaw import JigsawNetSupervisor
from superself.algorithms.moco import MomentumContrastSupervisor
from superself.algorithms.pirl import PIRLSupervisor
from superself.algorithms.rotatenet import RotateNetSupervisor
from superself.algorithms.splitbrain import SplitBrainNetSupervisor
from superself.supervisor import Supervisor

ALGORITHMS: dict[str, type[Supervisor]] = {
    value.__module__.rpartition(".")[2]: value  # its file's name
    for value in list(globals().values())
    if isinstance(value, type) and issubclass(value, Supervisor) and value is not Supervisor
}


def list_algorithms() -> list[str]:
    """The names that ``create`` knows, for example "rotatenet"."""
    return sorted(ALGORITHMS)


def create(algorithm: str, *args: Any, **kwargs: Any) -> Supervisor:
    """Makes a supervisor by name: ``create("rotatenet", "my_images", image_size=64)``.

    Raises:
        ValueError: if there is no such algorithm; lists those there are.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"There is no algorithm {algorithm!r}; pass one of {', '.join(list_algorithms())}.")
    return ALGORITHMS[algorithm](*args, **kwargs)


__all__ = [
    "ALGORITHMS",
    "BYOLSupervisor",
    "BiGanSupervisor",
    "ContextNetSupervisor",
    "ContrastiveMultiviewCodingSupervisor",
    "ContrastivePredictiveCodingSupervisor",
    "DenoiseNetSupervisor",
    "ExemplarNetSupervisor",
    "InstanceDiscriminationSupervisor",
    "JigsawNetSupervisor",
    "MomentumContrastSupervisor",
    "PIRLSupervisor",
    "RotateNetSupervisor",
    "SplitBrainNetSupervisor",
    "create",
    "list_algorithms",
]
