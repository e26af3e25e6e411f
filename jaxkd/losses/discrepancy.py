"""The distance of two batches of features as distributions: of their means.

This file needs only jax and can be lifted out of the package as it stands.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["mean_discrepancy"]


def mean_discrepancy(
    student: Float[Array, "batch *features"],
    teacher: Float[Array, "batch *features"],
    *,
    where: Bool[Array, " batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, " batch"]:
    """Maximum mean discrepancy with the linear kernel: ``‖mean_i s_i − mean_i t_i‖²``.

    Xu & Liu, "Data-Distortion Guided Self-Distillation for Deep Neural Networks", AAAI 2019, for the globally pooled
    features of two distorted versions of a batch. The mean is over the batch, for each feature; some reimplementations
    take it over the features too, which leaves one number of each batch to compare. It is symmetric, and gradients
    reach both arguments. The maximum mean discrepancy with a polynomial kernel, between the channels of one example,
    is `jaxkd.losses.neuron_selectivity`.

    Args:
      student: features ``[batch, ...]``; what follows the batch is flattened. Pool maps first.
      teacher: features of the student's shape.
      where: True for the examples that count ``[batch]``; the others are in neither mean.
      axis_name: a mapped axis over which the batch is split; the means are those of the global batch.

    Returns:
      The batch's value, for each example that counts ``[batch]``. It is 0 where nothing counts.

    Raises:
      ValueError: shapes differ (nothing is ever broadcast), or an input is not floating-point ``[batch, ...]``.

    >>> mean_discrepancy(jnp.array([[1.0, 0.0], [3.0, 0.0]]), jnp.array([[0.0, 1.0], [0.0, 1.0]]))
    Array([5., 5.], dtype=float32)
    """
    student, teacher = _features("student", student), _features("teacher", teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher: expected the student's shape {list(student.shape)}, got {list(teacher.shape)}. Nothing is "
            "broadcast; pool or embed both to one size first."
        )
    batch = student.shape[0]
    where = jnp.ones(batch, bool) if where is None else jnp.asarray(where)
    if where.dtype != jnp.bool_ or where.shape != (batch,):
        raise ValueError(f"where: expected bool[{batch}], True for what counts, got {where.dtype}{list(where.shape)}.")
    rows = jnp.expand_dims(where, tuple(range(1, student.ndim)))
    # The difference first: features that are nearly equal would lose it in their means.
    difference = (jnp.where(rows, student, 0) - jnp.where(rows, teacher, 0)).reshape(
        batch, math.prod(student.shape[1:])
    )
    total, count = jnp.sum(difference, axis=0), jnp.sum(where, dtype=difference.dtype)
    if axis_name is not None:
        total, count = jax.lax.psum((total, count), axis_name)
        # Always true. To a checked `jax.shard_map`, a value that is the same everywhere would be one for all devices,
        # with the gradient of one of them, where there is no mask.
        where = where & (jax.lax.axis_index(axis_name) >= 0)
    return jnp.where(where, jnp.sum((total / jnp.maximum(count, 1)) ** 2), 0)


def _features(name: str, x: Array) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim < 2:
        raise ValueError(f"{name}: expected floating-point features [batch, ...], got {x.dtype}{list(x.shape)}.")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
