"""Exponential moving averages of variables, for mean teachers and EMA students."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.types import Array, PyTree

Decay = float | Array | Callable[[Any], Any]
"""Weight of the old average in an update: a number in [0, 1], or a schedule of the step."""


def ema_warmup(decay: float | Array = 0.999) -> Callable[[Any], Array]:
    """Returns the warm-up schedule ``min(decay, (1 + t) / (10 + t))`` of update t.

    The small decay of the first updates lets the average forget the initial values quickly.

    Args:
      decay: the limit, in [0, 1].

    Returns:
      A schedule of the step.

    Raises:
      ValueError: the limit is outside of [0, 1].

    >>> schedule = ema_warmup(0.99)
    >>> [round(float(schedule(step)), 2) for step in (0, 10, 10_000)]
    [0.1, 0.55, 0.99]
    """
    check_decay("ema_warmup", decay)

    def schedule(step: Any) -> Array:
        step = jnp.asarray(step, jnp.float32)
        return jnp.minimum(decay, (1 + step) / (10 + step))

    return schedule


def begin(tree: PyTree) -> PyTree:
    """Starts an average: an unaliased copy with floats in float32 or better.

    A narrower dtype would round the small change of one update to zero.

    >>> begin({"w": jnp.ones((), jnp.bfloat16), "steps": jnp.int32(3)})
    {'steps': Array(3, dtype=int32), 'w': Array(1., dtype=float32)}
    """

    def own(x: Any) -> Array:
        x = jnp.asarray(x)
        return jnp.array(x, jnp.promote_types(x.dtype, jnp.float32), copy=True) if _averaged(x) else jnp.copy(x)

    return jax.tree.map(own, tree)


def follow(average: PyTree, new: PyTree, decay: Decay, step: Any) -> PyTree:
    """Computes ``decay · average + (1 − decay) · new`` for floating-point leaves.

    Integers and PRNG keys are taken from ``new``. A decay of 1 leaves the average unchanged and 0 returns the new
    value, both exactly; a schedule is a function of ``step``, the number of updates before this one.

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
    """Raises unless a decay is a schedule, a traced value or a number in [0, 1]."""
    if not callable(decay) and not isinstance(decay, jax.core.Tracer) and not 0 <= decay <= 1:
        raise ValueError(
            f"{name}, decay: expected a number in [0, 1], the weight of the old average, or a schedule of the step, "
            f"got {decay}."
        )


def _averaged(x: Array) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))
