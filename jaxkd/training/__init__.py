"""Training: `distill` makes the three pure functions; the rest runs, records and resumes them."""

from jaxkd.training import metrics
from jaxkd.training.distill import distill

__all__ = ["distill", "metrics"]
