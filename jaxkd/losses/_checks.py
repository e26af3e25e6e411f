"""Checks of arguments: errors say what was expected, what came and what to do.

Dtypes, shapes and masks are known while tracing and always checked. A hyperparameter is checked where its value is
known; a traced one (a schedule of the step, a learned temperature) passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array


def floating(name: str, x: Any, form: str, *, rank: int | None = None, least_rank: int = 0) -> Array:
    """Returns floating-point ``x`` of the rank, or at least ``least_rank``, upcast.

    The result is float32 or better. ``form`` is the kind and the shape, such as ``logits [..., classes]``.
    """
    x = jnp.asarray(x)
    fits = x.ndim >= least_rank if rank is None else x.ndim == rank
    if not jnp.issubdtype(x.dtype, jnp.floating) or not fits:
        raise ValueError(f"{name}: expected floating-point {form}, got {x.dtype}{list(x.shape)}.")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def logits(name: str, x: Any) -> Array:
    """Returns logits ``[..., classes]`` in float32 or better."""
    return floating(name, x, "logits [..., classes]", least_rank=1)


def same_shape(student: Array, x: Array, advice: str, *, name: str = "teacher", other: str = "the student") -> None:
    """Raises unless ``x`` has the student's shape: no loss broadcasts."""
    if x.shape != student.shape:
        raise ValueError(
            f"{name}: expected {other}'s shape {list(student.shape)}, got {list(x.shape)}. Nothing is broadcast; "
            f"{advice}."
        )


def same_batch(student: Array, teacher: Array, name: str = "teacher") -> None:
    """Raises unless both have one leading dimension."""
    if teacher.shape[0] != student.shape[0]:
        batch, came = student.shape[0], f"{teacher.dtype}{list(teacher.shape)}"
        raise ValueError(f"{name}: expected the student's batch of {batch}, got {came}.")


def mask(where: Any, shape: tuple[int, ...], name: str = "where") -> Array | None:
    """Returns a mask of this shape as an array, and None for None."""
    if where is None:
        return None
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_ or where.shape != shape:
        raise ValueError(
            f"{name}: expected bool{list(shape)}, True for the entries to include, got {where.dtype}"
            f"{list(where.shape)}."
        )
    return where


def mask_or_ones(where: Any, shape: tuple[int, ...], name: str = "where") -> Array:
    """Returns a mask of this shape, and one that includes every entry for None."""
    checked = mask(where, shape, name)
    return jnp.ones(shape, bool) if checked is None else checked


def labels(labels: Any, logits: Array) -> tuple[Array, Array]:
    """Returns integer labels for logits, and True for those within ``[0, classes)``."""
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels: expected integer classes {list(logits.shape[:-1])} for logits {list(logits.shape)}, got "
            f"{labels.dtype}{list(labels.shape)}. soft_cross_entropy takes probabilities."
        )
    labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))  # an int8 cannot be compared with 1000 classes
    return labels, (labels >= 0) & (labels < logits.shape[-1])


def temperature(temperature: Any, dtype: Any, shape: tuple[int, ...] = ()) -> Array:
    """Returns a positive temperature, one or one per entry, broadcast to ``shape``."""
    value = jnp.asarray(temperature, dtype)
    if value.shape not in ((), shape):
        expected = f"a scalar, or one for each entry of {list(shape)}" if shape else "a scalar"
        raise ValueError(f"temperature: expected {expected}, got {value.dtype}{list(value.shape)}.")
    if not isinstance(temperature, jax.core.Tracer):
        numbers = jax.tree.leaves(temperature.tolist() if hasattr(temperature, "tolist") else temperature)
        if not all(number > 0 for number in numbers):  # NaN is not
            raise ValueError(f"temperature: expected a positive number, got {temperature}.")
    return jnp.broadcast_to(value, shape)


def positive(name: str, value: Any) -> None:
    """Raises unless the number is positive."""
    if not isinstance(value, jax.core.Tracer) and not value > 0:  # NaN is not
        raise ValueError(f"{name}: expected a positive number, got {value}.")


def not_negative(name: str, value: Any) -> None:
    """Raises unless the number is 0 or more."""
    if not isinstance(value, jax.core.Tracer) and not value >= 0:  # NaN is not
        raise ValueError(f"{name}: expected at least 0, got {value}.")


def fraction(name: str, value: Any) -> None:
    """Raises unless the number is from 0 to 1."""
    if not isinstance(value, jax.core.Tracer) and not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value}.")
