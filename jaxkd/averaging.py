"""Exponential moving averages of a model's variables: what a mean teacher and an averaged student are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.types import Array, PyTree

Decay = float | Array | Callable[[Any], Any]
"""How much of the average stays in a step: a number in [0, 1], or a schedule of the step."""


def rising_decay(decay: float | Array = 0.999) -> Callable[[Any], Array]:
    """The decay ``min(decay, (1 + t) / (10 + t))`` of update t = 0, 1, ..., so that an average soon forgets its start.

    Args:
      decay: the limit, in [0, 1].

    Returns:
      A schedule of the step.

    Raises:
      ValueError: the limit is outside of [0, 1].

    >>> schedule = rising_decay(0.99)
    >>> [round(float(schedule(step)), 2) for step in (0, 10, 10_000)]
    [0.1, 0.55, 0.99]
    """
    check_decay("rising_decay", decay)

    def schedule(step: Any) -> Array:
        step = jnp.asarray(step, jnp.float32)
        return jnp.minimum(decay, (1 + step) / (10 + step))

    return schedule


def begin(tree: PyTree) -> PyTree:
    """An average of one value: a copy that shares no memory with it, with floats in float32 or better.

    A narrower average would not see the small share that one step adds.

    >>> begin({"w": jnp.ones((), jnp.bfloat16), "steps": jnp.int32(3)})
    {'steps': Array(3, dtype=int32), 'w': Array(1., dtype=float32)}
    """

    def own(x: Any) -> Array:
        x = jnp.asarray(x)
        return jnp.array(x, jnp.promote_types(x.dtype, jnp.float32), copy=True) if _averaged(x) else jnp.copy(x)

    return jax.tree.map(own, tree)


def follow(average: PyTree, new: PyTree, decay: Decay, step: Any) -> PyTree:
    """``decay · average + (1 − decay) · new`` of the floating-point arrays; integers and keys are the new ones.

    Args:
      average: from `begin`, or of the step before.
      new: the values to follow, in the same structure.
      decay: 1 leaves the average as it is, 0 makes it the new value, exactly.
      step: the updates made before this one, for a schedule.

    Raises:
      ValueError: the two trees differ in structure.

    >>> follow({"w": jnp.array(1.0)}, {"w": jnp.array(2.0)}, 0.75, step=0)
    {'w': Array(1.25, dtype=float32)}
    """
    share = decay(step) if callable(decay) else decay

    def towards(old: Array, x: Array) -> Array:
        if not _averaged(x):
            return x
        kept = jnp.asarray(share, old.dtype)
        return kept * old + (1 - kept) * x.astype(old.dtype)

    return jax.tree.map(towards, average, new)


def check_decay(name: str, decay: Decay) -> None:
    """Raises unless a decay is a schedule, traced, or a number in [0, 1]."""
    if not callable(decay) and not isinstance(decay, jax.core.Tracer) and not 0 <= decay <= 1:
        raise ValueError(
            f"{name}, decay: expected a number in [0, 1], the share of the average that stays in a step, or a schedule "
            f"of the step, got {decay}."
        )


def _averaged(x: Array) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))
