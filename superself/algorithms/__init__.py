"""One file per algorithm. The registry is derived from the imports here; names are those of the files."""

from __future__ import annotations

import difflib
from typing import Any

from superself.algorithms.barlow_twins import BarlowTwinsSupervisor
from superself.algorithms.bigan import BiGanSupervisor
from superself.algorithms.byol import BYOLSupervisor
from superself.algorithms.cmc import ContrastiveMultiviewCodingSupervisor
from superself.algorithms.context_encoder import ContextNetSupervisor
from superself.algorithms.cpc import ContrastivePredictiveCodingSupervisor
from superself.algorithms.deep_cluster import DeepClusterSupervisor
from superself.algorithms.deep_cluster_v2 import DeepClusterV2Supervisor
from superself.algorithms.denoising_autoencoder import DenoiseNetSupervisor
from superself.algorithms.detcon import DetConSupervisor
from superself.algorithms.dino import DINOSupervisor
from superself.algorithms.exemplarnet import ExemplarNetSupervisor
from superself.algorithms.iic import IICSupervisor
from superself.algorithms.instance_discrimination import InstanceDiscriminationSupervisor
from superself.algorithms.jigsaw import JigsawNetSupervisor
from superself.algorithms.moco import MomentumContrastSupervisor
from superself.algorithms.moco_v3 import MoCoV3Supervisor
from superself.algorithms.nnclr import NNCLRSupervisor
from superself.algorithms.pirl import PIRLSupervisor
from superself.algorithms.rotatenet import RotateNetSupervisor
from superself.algorithms.siamese import SiameseSupervisor
from superself.algorithms.simclr import SimCLRSupervisor
from superself.algorithms.simsiam import SimSiamSupervisor
from superself.algorithms.splitbrain import SplitBrainNetSupervisor
from superself.algorithms.swav import SwAVSupervisor
from superself.algorithms.vicreg import VICRegSupervisor
from superself.algorithms.w_mse import WhiteningMSESupervisor
from superself.supervisor import Supervisor

ALGORITHMS: dict[str, type[Supervisor]] = {
    cls.__module__.rpartition(".")[2]: cls  # the name of its file
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, Supervisor) and cls is not Supervisor
}


def list_algorithms() -> list[str]:
    """The names of the algorithms that come with the package, for example "rotatenet"."""
    return sorted(ALGORITHMS)


def list_presets() -> dict[str, str]:
    """The names of presets, such as "moco-v1", and the algorithm that each belongs to."""
    return {preset: name for name, cls in sorted(ALGORITHMS.items()) for preset in cls.presets}


def algorithms_table() -> str:
    """A Markdown table of all algorithms: name, class, paper, and what it is good for."""
    rows = ["| name | class | paper | good for |", "|---|---|---|---|"]
    for name, cls in sorted(ALGORITHMS.items()):
        authors, address = cls.paper
        page = f"[`{name}`](docs/algorithms/{name}.md)"
        rows.append(f"| {page} | `{cls.__name__}` | [{authors}]({address}) | {cls.good_for} |")
    return "\n".join(rows)


def create(algorithm: str, *args: Any, **kwargs: Any) -> Supervisor:
    """Makes a supervisor by name: ``create("rotatenet", "my_images", image_size=64)``.

    Args:
        algorithm: the name of an algorithm ("moco"), of a preset ("moco-v1"), or of a class, which may be your own
            ("ClippedRotateNet").
        *args: of the constructor, the data set first.
        **kwargs: of the constructor; they take precedence over those of a preset.

    Raises:
        ValueError: if the name is unknown; suggests the nearest.
    """
    presets = list_presets()
    if algorithm in presets:
        cls = ALGORITHMS[presets[algorithm]]
        return cls(*args, **{**cls.presets[algorithm], **kwargs})
    classes = {cls.__name__: cls for cls in _subclasses(Supervisor)}
    known = {**classes, **ALGORITHMS}
    if algorithm not in known:
        nearest = difflib.get_close_matches(str(algorithm), [*known, *presets], 1, 0.5)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise ValueError(
            f"There is no algorithm {algorithm!r}; {hint}pass one of {', '.join([*list_algorithms(), *presets])}, or the name of "
            "your own class."
        )
    return known[algorithm](*args, **kwargs)


def _subclasses(cls: type) -> list[type]:
    return [found for child in cls.__subclasses__() for found in (child, *_subclasses(child))]


__all__ = [
    *sorted(cls.__name__ for cls in ALGORITHMS.values()),
    "ALGORITHMS",
    "algorithms_table",
    "create",
    "list_algorithms",
    "list_presets",
]
