"""Reports and tables of runs, from the files that runs leave."""

from superself.reporting.run_differences import RunDifferences
from superself.reporting.run_table import Runs, runs
from superself.reporting.stored_run import StoredRun

__all__ = ["RunDifferences", "Runs", "StoredRun", "runs"]
