"""Training: `distill` makes three pure functions; the rest runs, records and resumes them.

================================  ==========================================================================
`distill`                         student, teacher, objective and optimizer to a `Distiller`
`preprocess`                      augmentation and normalisation as part of the step
`fit`, `evaluate`                 the loop: progress, evaluation, logs, checkpoints, exact resume
`metrics`                         means that are not divided yet: merge, compute
`similarity`                      linear CKA and SVCCA between layers, as metrics of an evaluation
`Checkpoints`, `Logs`             what `fit` writes with, for loops of one's own
================================  ==========================================================================
"""

from jaxkd.training import metrics, similarity
from jaxkd.training.checkpoint import CheckpointError, Checkpoints
from jaxkd.training.distill import distill
from jaxkd.training.evaluation import evaluate
from jaxkd.training.feed import Input
from jaxkd.training.logs import Logs
from jaxkd.training.loop import FitResult, fit
from jaxkd.training.meter import NonFiniteError
from jaxkd.training.preprocess import preprocess

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "FitResult",
    "Input",
    "Logs",
    "NonFiniteError",
    "distill",
    "evaluate",
    "fit",
    "metrics",
    "preprocess",
    "similarity",
]
