"""What every run needs and no algorithm owns: settings, the run itself, checkpoints, optimizers, schedules, trackers."""

from superself.training.averaging import averaged_copy
from superself.training.checkpoint import (
    archive,
    dataset_state_keys,
    read_checkpoint,
    require_fit,
    write_checkpoint,
)
from superself.training.compiling import compile_networks
from superself.training.describe import describe_value, to_plain, versions
from superself.training.files import require_space, require_writable
from superself.training.interrupt import FinishStepOnSignal
from superself.training.lars import LARS
from superself.training.launch import start_processes
from superself.training.lock import RunLock, is_running
from superself.training.metrics import Metrics
from superself.training.optimizers import (
    GroupRule,
    can_fuse,
    check_made,
    check_optimizer,
    make_optimizer,
    parameter_groups,
    schedule_decay,
)
from superself.training.parallel import Parallel
from superself.training.precision import autocast, check_precision, choose_precision
from superself.training.run import Run
from superself.training.schedules import (
    Duration,
    Schedule,
    check_bounds,
    check_duration,
    check_lr_scheduler,
    constant,
    cosine,
    count_steps,
    epochs,
    make_lr_scheduler,
    scheduled,
    warmup_cosine,
)
from superself.training.settings import Settings
from superself.training.trackers import MLflowTracker, Progress, Record, TensorBoardTracker, Tracker, WandbTracker

__all__ = [
    "LARS",
    "Duration",
    "FinishStepOnSignal",
    "GroupRule",
    "MLflowTracker",
    "Metrics",
    "Parallel",
    "Progress",
    "Record",
    "Run",
    "RunLock",
    "Schedule",
    "Settings",
    "TensorBoardTracker",
    "Tracker",
    "WandbTracker",
    "autocast",
    "archive",
    "require_writable",
    "averaged_copy",
    "can_fuse",
    "check_made",
    "check_optimizer",
    "check_precision",
    "check_lr_scheduler",
    "check_bounds",
    "check_duration",
    "choose_precision",
    "compile_networks",
    "constant",
    "cosine",
    "count_steps",
    "dataset_state_keys",
    "describe_value",
    "epochs",
    "is_running",
    "make_lr_scheduler",
    "make_optimizer",
    "parameter_groups",
    "read_checkpoint",
    "require_fit",
    "require_space",
    "schedule_decay",
    "scheduled",
    "start_processes",
    "to_plain",
    "versions",
    "warmup_cosine",
    "write_checkpoint",
]
