"""Trackers watch a run and change nothing in it: progress line, record in files, and whatever a user adds."""

from superself.training.trackers.mlflow import MLflowTracker
from superself.training.trackers.progress import Progress
from superself.training.trackers.record import Record
from superself.training.trackers.tensorboard import TensorBoardTracker
from superself.training.trackers.tracker import Tracker
from superself.training.trackers.wandb import WandbTracker

__all__ = ["BY_NAME", "MLflowTracker", "Progress", "Record", "TensorBoardTracker", "Tracker", "WandbTracker"]

BY_NAME = {cls.library: cls for cls in (MLflowTracker, TensorBoardTracker, WandbTracker)}  # for trackers=["mlflow"]
