"""Training: pure steps from `distill`, their wrappers, and the loop that runs one.

================================  ==========================================================================
`distill`                         composes student, teacher, objective and optimizer into a `Distiller`
`preprocess`                      augmentation and normalization as part of the step
`averaged`, `average_of`          moving average of the student, with decays such as `rising_decay`
`skip_nonfinite`                  skips and counts updates that are not finite
`per_member`                      an optimizer that treats each of several models separately
`sweep`, `member`                 several seeds or hyperparameters as one program
`term_gradients`                  reports norms and cosines of the terms' gradients among the metrics
`fit`, `evaluate`                 the loop: progress, evaluation, logs, checkpoints, exact resume
`metrics`                         metrics as sums and counts: merge, compute
`forgetting`                      accuracy by task, average accuracy, forgetting, backward transfer
`similarity`                      linear CKA and SVCCA between layers, as metrics of an evaluation
`Preempted`, `NonFiniteError`     raised by `fit` on SIGTERM, and for a loss that is not finite
`Checkpoints`, `Logs`             checkpoints and log files of `fit`, for loops of your own
`Input`                           contract of the inputs that `fit` takes
================================  ==========================================================================
"""

from jaxkd.averaging import rising_decay
from jaxkd.training import forgetting, metrics, similarity
from jaxkd.training.averaged import average_of, averaged
from jaxkd.training.checkpoint import CheckpointError, Checkpoints
from jaxkd.training.compiled_steps import evaluate
from jaxkd.training.distill import distill
from jaxkd.training.inputs import Input
from jaxkd.training.logs import Logs, NonFiniteError
from jaxkd.training.loop import FitResult, fit
from jaxkd.training.per_member import per_member
from jaxkd.training.preemption import Preempted
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
