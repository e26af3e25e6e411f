"""Training: `distill` makes three pure functions; the rest runs, records and resumes them.

================================  ==========================================================================
`distill`                         student, teacher, objective and optimizer to a `Distiller`
`preprocess`                      augmentation and normalisation as part of the step
`averaged`, `average_of`          the student's moving average beside it, with decays such as `rising_decay`
`skip_nonfinite`                  steps that would not be finite are left out, and counted
`per_member`                      an optimizer that sees each of several models by itself
`sweep`, `member`                 several seeds or hyperparameters as one program
`term_gradients`                  norms and cosines of the terms' gradients, among the metrics
`fit`, `evaluate`                 the loop: progress, evaluation, logs, checkpoints, exact resume
`metrics`                         means that are not divided yet: merge, compute
`forgetting`                      accuracy by task, average accuracy, forgetting, backward transfer
`similarity`                      linear CKA and SVCCA between layers, as metrics of an evaluation
`Preempted`, `NonFiniteError`     how `fit` ends on SIGTERM, and on a loss that is not finite
`Checkpoints`, `Logs`             what `fit` writes with, for loops of one's own
================================  ==========================================================================
"""

from jaxkd.averaging import rising_decay
from jaxkd.training import forgetting, metrics, similarity
from jaxkd.training.averaged import average_of, averaged
from jaxkd.training.checkpoint import CheckpointError, Checkpoints
from jaxkd.training.distill import distill
from jaxkd.training.evaluation import evaluate
from jaxkd.training.feed import Input
from jaxkd.training.interrupts import Preempted
from jaxkd.training.logs import Logs
from jaxkd.training.loop import FitResult, fit
from jaxkd.training.meter import NonFiniteError
from jaxkd.training.per_member import per_member
from jaxkd.training.preprocess import preprocess
from jaxkd.training.skipping import skip_nonfinite
from jaxkd.training.sweep import member, sweep
from jaxkd.training.term_gradients import term_gradients

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "FitResult",
    "Input",
    "Logs",
    "NonFiniteError",
    "Preempted",
    "average_of",
    "averaged",
    "distill",
    "evaluate",
    "fit",
    "forgetting",
    "member",
    "metrics",
    "per_member",
    "preprocess",
    "rising_decay",
    "similarity",
    "skip_nonfinite",
    "sweep",
    "term_gradients",
]
