"""Training: pure steps from `distill`, their wrappers, and the loop that runs one.

================================  ==========================================================================
`distill`                         composes student, teacher, objective and optimizer into a `Distiller`
`preprocess`                      augmentation and normalization as part of the step
`with_ema`, `ema_params`          moving average of the student, with decays such as `ema_warmup`
`skip_nonfinite`                  skips and counts updates that are not finite
`per_model`                      an optimizer that treats each of several models separately
`sweep`, `select_run`                 several seeds or hyperparameters as one program
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

from jaxkd._core.moving_average import ema_warmup
from jaxkd.metrics import _forgetting, _classification, _similarity
from jaxkd.distillers import ema_params, with_ema
from jaxkd.training._checkpoint import CheckpointError, Checkpoints
from jaxkd.training._compiled_steps import evaluate
from jaxkd.distillers import distill
from jaxkd.training._inputs import Input
from jaxkd.training._logs import Logs, NonFiniteError
from jaxkd.training._loop import FitResult, fit
from jaxkd.distillers import per_model
from jaxkd.training._preemption import Preempted
from jaxkd.distillers import preprocess
from jaxkd.distillers import skip_nonfinite
from jaxkd.distillers import select_run, sweep
from jaxkd.distillers import term_gradients

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
