"""What the arguments of Super Selfish are called here, for the error that answers an old name.

By the class, or the method, that had the argument; each answer follows "pass" and names today's argument. Other old names are
today's too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_TEMPERATURE = "temperature="
_PROJECTOR = "projector=, which maps features to embeddings"
_NEGATIVES = "negatives="
_BANK_MOMENTUM = (
    "momentum=1 - memory_m, the opposite fraction: momentum is how much of a row is kept, "
    "memory_m was how much was replaced"
)
_AUGMENT = "augment=, which says what happens to an image, for example a recipe"
_BINS = "ab_step= and l_step= alone: the bins cover all colours without an offset"

FORMER_NAMES: dict[str, dict[str, str]] = {
    "BYOLSupervisor": {"m": "momentum="},
    "BiGanSupervisor": {
        "shape": "latent=, the number of values of a latent",
        "rand_gen": "nothing instead, or override draw_latents(count)",
        "fake_loss": "loss=, of the logits of both kinds of pairs: images are compared by the discriminator alone",
    },
    "ContextNetSupervisor": {
        "n_blocks": "blocks=",
        "p": "blocks=, the number of blocks that are hidden: n_blocks times p on average",
        "scale_range": "block_size=, the side of a block as a fraction of the image's shorter side",
        "discriminator": "adversarial_weight=, or 0 for none: its network is fixed",
        "fake_loss": "loss= for the reconstruction and adversarial_weight= for the other term",
    },
    "ContrastiveMultiviewCodingSupervisor": {
        "n": _NEGATIVES,
        "t": _TEMPERATURE,
        "memory_m": _BANK_MOMENTUM,
        "predictor": "projector=PerHalf(for L, for ab), or a dictionary of arguments of MLP for both",
    },
    "ContrastivePredictiveCodingSupervisor": {
        "embedding_size": "predictor=nn.Linear(features, embedding_size), which makes the targets",
        "half_crop_size": "patch_size=, twice as long, and stride=, each as one number of pixels",
        "sides": "nothing instead: the directions are part of the method",
        "bottleneck_resolution": "patch_size= and stride=, which determine the grid of patches",
    },
    "ExemplarNetSupervisor": {"n_trans": _AUGMENT, "max_elms": _AUGMENT, "p": _AUGMENT},
    "InstanceDiscriminationSupervisor": {"n": _NEGATIVES, "t": _TEMPERATURE, "predictor": _PROJECTOR},
    "JigsawNetSupervisor": {
        "jigsaw_path": "n_permutations=: the permutations are found for the grid",
        "n_perms_per_image": "n_permutations_per_image=",
        "total_perms": "n_permutations=",
        "crops": "grid=",
        "crop_size": "tile=, the side of a tile as a fraction of its cell's",
    },
    "JointEmbedding": {
        "data_augmentation": "augment=, a recipe such as 'simclr', a transform, or a function of a batch of images",
        "embedding_size": "projector={'out_features': embedding_size}",
    },
    "MomentumContrastSupervisor": {
        "K": "queue_size=, counted in images: K batches are queue_size=K * batch_size",
        "m": "momentum=",
        "t": _TEMPERATURE,
    },
    "PIRLSupervisor": {"n": _NEGATIVES, "t": _TEMPERATURE, "memory_m": _BANK_MOMENTUM, "predictor": _PROJECTOR},
    "SplitBrainNetSupervisor": {"l_offset": _BINS, "a_offset": _BINS, "b_offset": _BINS},
    "Supervisor.supervise": {"collate_fn": "collate_fn= to the constructor"},
}


def new_name(name: str, functions: tuple[Callable[..., Any], ...]) -> str | None:
    """What to pass instead of the argument ``name`` of these constructors or methods; None if it is not a former one."""
    owners = (function.__qualname__.removesuffix(".__init__") for function in functions)
    return next((FORMER_NAMES[owner][name] for owner in owners if name in FORMER_NAMES.get(owner, {})), None)
