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
from superself.training.schedules import (
    Schedule,
    check_bounds,
    check_lr_scheduler,
    constant,
    cosine,
    epochs,
    make_lr_scheduler,
    scheduled,
    warmup_cosine,
)

__all__ = [
    "LARS",
    "GroupRule",
    "FinishStepOnSignal",
    "OptimizerPair",
    "Progress",
    "Run",
    "RunRecord",
    "Schedule",
    "archive",
    "autocast",
    "can_fuse",
    "check_bounds",
    "check_known",
    "check_lr_scheduler",
    "check_optimizer",
    "check_precision",
    "check_settings",
    "choose_precision",
    "constant",
    "cosine",
    "dataset_state_keys",
    "describe_value",
    "epochs",
    "make_lr_scheduler",
    "make_optimizer",
    "parameter_groups",
    "read_checkpoint",
    "require_fit",
    "require_writable",
    "scheduled",
    "stored_arguments",
    "versions",
    "warmup_cosine",
    "write_checkpoint",
]
