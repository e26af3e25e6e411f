"""Input checks that several objectives share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd._core import batches, checks
from jaxkd._core.batches import lookup
from jaxkd.types import Array, Context


def positive(name: str, **numbers: Any) -> None:
    """Raises unless all numbers are positive; a traced number has no value to check.

    >>> positive("crd", temperature=0.0)
    Traceback (most recent call last):
    ValueError: crd, temperature: expected a positive number, got 0.0.
    """
    for argument, value in numbers.items():
        _number(f"{name}, {argument}", value, "a positive number", lambda x: x > 0)


def not_negative(name: str, **numbers: Any) -> None:
    """Raises unless all numbers are 0 or more; a traced number has no value to check."""
    for argument, value in numbers.items():
        _number(f"{name}, {argument}", value, "a number of at least 0", lambda x: x >= 0)


def share(name: str, **numbers: Any) -> None:
    """Raises unless all numbers are from 0 to 1; a traced number has no value."""
    for argument, value in numbers.items():
        _number(f"{name}, {argument}", value, "a number from 0 to 1", lambda x: 0 <= x <= 1)


def finite(name: str, **numbers: Any) -> None:
    """Raises unless all are finite numbers; a traced number has no value to check."""
    for argument, value in numbers.items():
        _number(f"{name}, {argument}", value, "a finite number", lambda x: True)


def sizes(name: str, **numbers: Any) -> None:
    """Raises unless all numbers are positive integers.

    >>> sizes("crd", negatives=2.5)
    Traceback (most recent call last):
    ValueError: crd, negatives: expected a positive number, an integer, got 2.5.
    """
    for argument, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name}, {argument}: expected a positive number, an integer, got {value}.")


def class_labels(context: Context, path: str) -> Array:
    """Returns the integer class labels ``[batch]`` at a path; raises if it holds none."""
    label = lookup(context, path)
    if not jnp.issubdtype(label.dtype, jnp.integer) or len(label.shape) != 1:
        raise ValueError(f"{path}: expected integer classes [batch], got {checks.shape(label)}.")
    return label


def rows_within(name: str, context: Context, index: Any, rows: int, what: str) -> None:
    """Raises if an unmasked index is known and out of range.

    Shapes and traced values have none.

    Args:
      name: the objective.
      context: outputs and batch of the step.
      index: positions in the training set ``[batch]``.
      rows: number of positions.
      what: the argument that has an entry for each position.

    Raises:
      ValueError: an index is negative or not below ``rows``.

    >>> rows_within("crd", Context({}, {}, {}, 0), np.array([3, 70]), 64, "labels")
    Traceback (most recent call last):
    ValueError: crd, index: expected positions in [0, 64), got 70. Give labels for the whole training set, not a split.
    """
    if not _known(index) or not _known(context.batch.get("mask", index)):
        return
    mask, places = batches.example_mask(context.batch), np.asarray(index)
    wrong = (places < 0) | (places >= rows)
    if found := places[wrong if mask is None else wrong & np.asarray(mask)].tolist():
        raise ValueError(
            f"{name}, index: expected positions in [0, {rows}), got {found[0]}. Give {what} for the whole training "
            "set, not a split."
        )


def _known(x: Any) -> bool:
    """Returns True for an array with values on this host, unlike a shape or a tracer."""
    traced = isinstance(x, jax.core.Tracer) or not isinstance(x, (np.ndarray, jax.Array))
    return not traced and getattr(x, "is_fully_addressable", True)


def _number(name: str, value: Any, expected: str, inside: Callable[[float], bool]) -> None:
    array = hasattr(value, "dtype") and hasattr(value, "shape")
    real = not array and isinstance(value, (int, float)) and not isinstance(value, bool)
    if array:
        real = value.shape == () and any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer))
    if real and (not array or _known(value)):
        real = math.isfinite(float(value)) and inside(float(value))
    if not real:
        came = checks.shape(value) if array and value.shape else repr(value) if isinstance(value, str) else value
        raise ValueError(f"{name}: expected {expected}, got {came}.")
