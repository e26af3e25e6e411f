"""A weight that rises slowly: students that know nothing yet have nothing to teach each other."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxkd.objectives.compose import Schedule
from jaxkd.types import Array

__all__ = ["ramp_up"]


def ramp_up(steps: int, *, high: float = 1.0) -> Schedule:
    """The rising weight ``high · exp(−5 (1 − min(t, n)/n)²)`` of step t: from 0.7% of ``high`` to all of it.

    Laine & Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR 2017. ONE and OKDDip use it for what is
    taught, over the first 80 of 300 epochs; this counts steps.

    Args:
      steps: n > 0, the number of steps until ``high`` is reached.
      high: the weight from then on.

    Returns:
      A schedule of the step, for any ``weight``.

    Raises:
      ValueError: there are no steps.

    >>> schedule = ramp_up(10, high=2.0)
    >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 99)]
    [0.013, 0.573, 2.0, 2.0]
    """
    if steps <= 0:
        raise ValueError(f"ramp_up, steps: expected a positive number, got {steps}.")

    def schedule(step: Any) -> Array:
        left = 1 - jnp.minimum(jnp.asarray(step, jnp.float32), steps) / steps
        return high * jnp.exp(-5 * left**2)

    return schedule
