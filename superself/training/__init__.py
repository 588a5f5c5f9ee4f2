"""Parts of a run that all algorithms share: checkpoints, optimizers, schedules, precision, interruption, progress."""

from superself.training.checkpoint import (
    archive,
    dataset_state_keys,
    read_checkpoint,
    require_fit,
    require_writable,
    write_checkpoint,
)
from superself.training.checks import check_known, check_settings
from superself.training.interrupt import FinishStepOnSignal
from superself.training.lars import LARS
from superself.training.optimizers import (
    GroupRule,
    OptimizerPair,
    can_fuse,
    check_optimizer,
    make_optimizer,
    parameter_groups,
)
from superself.training.precision import autocast, check_precision, choose_precision
from superself.training.progress import Progress
from superself.training.record import RunRecord, describe_value, versions
from superself.training.run import Run, stored_arguments
from superself.training.schedules import constant, cosine, start_schedule, warmup_cosine

__all__ = [
    "LARS",
    "FinishStepOnSignal",
    "GroupRule",
    "OptimizerPair",
    "Progress",
    "Run",
    "RunRecord",
    "archive",
    "autocast",
    "can_fuse",
    "check_known",
    "check_optimizer",
    "check_precision",
    "check_settings",
    "choose_precision",
    "constant",
    "cosine",
    "describe_value",
    "dataset_state_keys",
    "make_optimizer",
    "parameter_groups",
    "read_checkpoint",
    "require_fit",
    "require_writable",
    "start_schedule",
    "stored_arguments",
    "versions",
    "warmup_cosine",
    "write_checkpoint",
]
