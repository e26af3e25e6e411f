"""Input checks that several objectives share."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd._core import checks
from jaxkd._core.batches import lookup
from jaxkd.types import Array, Context


def positive(name: str, **numbers: float | Array) -> None:
    """Raises unless all numbers are positive; a traced number has no value to check.

    >>> positive("crd", temperature=0.0)
    Traceback (most recent call last):
    ValueError: crd, temperature: expected a positive number, got 0.0.
    """
    for argument, number in numbers.items():
        if not isinstance(number, jax.core.Tracer) and not number > 0:  # not `<= 0`, which is False for NaN
            raise ValueError(f"{name}, {argument}: expected a positive number, got {number}.")


def class_labels(context: Context, path: str) -> Array:
    """Returns the integer class labels ``[batch]`` at a path; raises if it holds none."""
    label = lookup(context, path)
    if not jnp.issubdtype(label.dtype, jnp.integer) or len(label.shape) != 1:
        raise ValueError(f"{path}: expected integer classes [batch], got {checks.shape(label)}.")
    return label
