"""compare: several backbones, runs, files or methods in one table, with the random network and a verdict."""

from superself.comparison.budget import Plan, plan, random_part
from superself.comparison.comparing import compare
from superself.comparison.result import Comparison, Measurement

__all__ = ["Comparison", "Measurement", "Plan", "compare", "plan", "random_part"]
