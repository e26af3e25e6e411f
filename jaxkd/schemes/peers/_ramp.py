"""A weight that rises slowly, for networks that start untrained."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxkd.types import Array, Schedule


def ramp_up(steps: int, *, high: float = 1.0) -> Schedule:
    """Gaussian ramp-up ``high · exp(−5 (1 − min(t, n)/n)²)`` over n steps.

    Laine & Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR 2017. The weight rises from 0.7 % of ``high``
    to ``high``. ONE and OKDDip use it for the distillation terms, over the first 80 of 300 epochs, because untrained
    networks have nothing to teach; here t counts steps.

    Args:
      steps: n > 0, number of steps until ``high`` is reached.
      high: weight from step n on.

    Returns:
      A schedule of the step, for any ``weight``.

    Raises:
      ValueError: ``steps`` is not positive.

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
