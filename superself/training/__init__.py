"""What every run needs and no algorithm owns: settings, the run itself, checkpoints, optimizers, schedules, trackers."""

from superself.training.checkpoint import (
    archive,
    dataset_state_keys,
    read_checkpoint,
    require_fit,
    write_checkpoint,
)
from superself.training.describe import describe_value, to_plain, versions
from superself.training.files import require_space, require_writable
from superself.training.interrupt import FinishStepOnSignal
from superself.training.lars import LARS
from superself.training.lock import RunLock
from superself.training.metrics import Metrics
from superself.training.optimizers import GroupRule, can_fuse, check_optimizer, make_optimizer, parameter_groups
from superself.training.precision import autocast, check_precision, choose_precision
from superself.training.run import Run
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
from superself.training.settings import Settings
from superself.training.trackers import Progress, Record, Tracker

__all__ = [
    "LARS",
    "FinishStepOnSignal",
    "GroupRule",
    "Metrics",
    "Progress",
    "Record",
    "Run",
    "RunLock",
    "Schedule",
    "Settings",
    "Tracker",
    "autocast",
    "archive",
    "require_writable",
    "can_fuse",
    "check_optimizer",
    "check_precision",
    "check_lr_scheduler",
    "check_bounds",
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
    "require_space",
    "scheduled",
    "to_plain",
    "versions",
    "warmup_cosine",
    "write_checkpoint",
]
