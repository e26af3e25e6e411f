"""Objectives: losses that know where their inputs are, and may own parameters and state.

=============================  =============================================================================
`jaxkd.objectives.compose`     `term` (a loss bound to paths), `combine` (a sum, which nests)
`jaxkd.objectives.hint`        `hint` (FitNets: the regressor is learned with the student)
=============================  =============================================================================

An objective is ``init(key, context) -> LossVars(params, state)`` and
``apply(params, state, context, key) -> LossOut(value, state, metrics)``.
"""

from jaxkd.objectives.compose import combine, lookup, mean, term
from jaxkd.objectives.hint import hint

__all__ = ["combine", "hint", "lookup", "mean", "term"]
