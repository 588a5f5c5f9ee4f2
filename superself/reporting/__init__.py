"""Reports and tables of runs, from the files that runs leave."""

from superself.reporting.page import report
from superself.reporting.run_differences import RunDifferences
from superself.reporting.run_table import Runs, runs
from superself.reporting.stored_run import StoredRun
from superself.reporting.tracker import ReportTracker

__all__ = ["ReportTracker", "RunDifferences", "Runs", "StoredRun", "report", "runs"]
