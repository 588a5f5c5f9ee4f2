"""Reports and tables of runs, from the files that runs leave."""

from superself.reporting.page import report
from superself.reporting.tracker import ReportTracker

__all__ = ["ReportTracker", "report"]
