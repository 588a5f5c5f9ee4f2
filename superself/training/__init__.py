"""What every run needs and no algorithm owns: checkpoints, randomness, interruption, schedules, parameter groups, progress."""

from superself.training.checkpoint import is_plain, read_checkpoint, require_fit, write_checkpoint
from superself.training.checks import check_known, check_settings, require_same
from superself.training.interrupt import FinishStepOnSignal
from superself.training.optimizers import parameter_groups
from superself.training.progress import Progress
from superself.training.randomness import random_state, seed_everything, set_random_state, untouched_randomness
from superself.training.record import RunRecord, describe_value, versions
from superself.training.schedules import constant, cosine, warmup_cosine

__all__ = [
    "FinishStepOnSignal",
    "Progress",
    "RunRecord",
    "check_known",
    "check_settings",
    "constant",
    "cosine",
    "describe_value",
    "is_plain",
    "parameter_groups",
    "random_state",
    "read_checkpoint",
    "require_fit",
    "require_same",
    "seed_everything",
    "set_random_state",
    "untouched_randomness",
    "versions",
    "warmup_cosine",
    "write_checkpoint",
]
