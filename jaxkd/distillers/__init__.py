"""Distillation as pure functions: `distill`, and ``Distiller → Distiller``.

============================================  =====================================================================
`distill`                                     composes student, teacher, objective and optimizer into a `Distiller`
`preprocess`                                  augmentation and normalization as part of the step
`with_ema`, `ema_params`                      moving average of the student, with decays such as `ema_warmup`
`repeated`                                    several updates with each batch
`skip_nonfinite`                              skips and counts updates that are not finite
`per_model`                                   an optimizer that treats each of several models separately
`sweep`, `select_run`                         several seeds or hyperparameters as one program
`term_gradients`                              reports norms and cosines of the terms' gradients among the metrics
`step_keys`, `teacher_outputs`, `forward_fn`  the parts of a step, for distillers of your own
`mapped_axis`                                 the mapped axis of the code that is traced, or None
============================================  =====================================================================
"""

from jaxkd._core.axes import mapped_axis
from jaxkd._core.moving_average import ema_warmup
from jaxkd.distillers._distill import distill, forward_fn, step_keys, teacher_outputs
from jaxkd.distillers._ema import ema_params, with_ema
from jaxkd.distillers._per_model import per_model
from jaxkd.distillers._preprocess import preprocess
from jaxkd.distillers._repeated import repeated
from jaxkd.distillers._skip_nonfinite import skip_nonfinite
from jaxkd.distillers._sweep import select_run, sweep
from jaxkd.distillers._term_gradients import term_gradients

__all__ = [
    "distill",
    "ema_params",
    "ema_warmup",
    "forward_fn",
    "mapped_axis",
    "per_model",
    "preprocess",
    "repeated",
    "select_run",
    "skip_nonfinite",
    "step_keys",
    "sweep",
    "teacher_outputs",
    "term_gradients",
    "with_ema",
]
