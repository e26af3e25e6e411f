"""Training on the host: the loop, evaluation, logs, checkpoints, exact resume.

=========================================  ===============================================================
`fit`, `FitResult`                         the loop: progress, evaluation, logs, checkpoints, exact resume
`evaluate`                                 metrics of a state on a whole input
`predict`                                  outputs of a model on a whole input, without padding
`Input`                                    contract of the inputs that `fit` takes
`Checkpoints`, `Logs`, `write_atomically`  checkpoints and log files of `fit`, for loops of your own
`keep_freed_memory`                        faster steps on CPUs with Linux: the process keeps its memory
`Preempted`, `NonFiniteError`              raised by `fit` on SIGTERM, and for a loss that is not finite
`CheckpointError`                          raised where a checkpoint cannot be read or written
=========================================  ===============================================================
"""

from jaxkd._core.files import write_atomically
from jaxkd.training._checkpoint import CheckpointError, Checkpoints
from jaxkd.training._compiled_steps import evaluate
from jaxkd.training._inputs import Input
from jaxkd.training._logs import Logs, NonFiniteError
from jaxkd.training._loop import FitResult, fit
from jaxkd.training._predict import predict
from jaxkd.training._process._memory import keep_freed_memory
from jaxkd.training._process._preemption import Preempted

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "FitResult",
    "Input",
    "Logs",
    "NonFiniteError",
    "Preempted",
    "evaluate",
    "fit",
    "keep_freed_memory",
    "predict",
    "write_atomically",
]
