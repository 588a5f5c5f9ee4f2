"""Trackers watch a run and change nothing in it: progress line, record in files, and whatever a user adds."""

from superself.training.trackers.progress import Progress
from superself.training.trackers.record import Record
from superself.training.trackers.tracker import Tracker

__all__ = ["Progress", "Record", "Tracker"]
