"""What every run needs and no algorithm owns: checkpoints, randomness, interruption, precision, schedules, progress."""

from superself.training.checkpoint import keys_of_images, read_checkpoint, require_fit, write_checkpoint
from superself.training.checks import check_known, check_settings
from superself.training.interrupt import FinishStepOnSignal
from superself.training.optimizers import OptimizerPair, can_fuse, parameter_groups
from superself.training.precision import autocast, choose_precision
from superself.training.progress import Progress
from superself.training.randomness import random_state, seed_everything, set_random_state, untouched_randomness
from superself.training.record import RunRecord, describe_value, versions
from superself.training.run import Run, stored_arguments
from superself.training.schedules import constant, cosine, start_schedule, warmup_cosine

__all__ = [
    "FinishStepOnSignal",
    "OptimizerPair",
    "Progress",
    "Run",
    "RunRecord",
    "autocast",
    "can_fuse",
    "check_known",
    "check_settings",
    "choose_precision",
    "constant",
    "cosine",
    "describe_value",
    "keys_of_images",
    "parameter_groups",
    "random_state",
    "read_checkpoint",
    "require_fit",
    "seed_everything",
    "set_random_state",
    "start_schedule",
    "stored_arguments",
    "untouched_randomness",
    "versions",
    "warmup_cosine",
    "write_checkpoint",
]
