"""Schemes: who teaches whom, and when. Each returns the same `Distiller` that `jaxkd.distill` does.

=============================  =============================================================================
`jaxkd.distill`                offline: a trained, frozen teacher
`jaxkd.schemes.staged`         one objective after another: initialise on a feature, then train on the task
=============================  =============================================================================
"""

from jaxkd.schemes.staged import Stage, staged

__all__ = ["Stage", "staged"]
