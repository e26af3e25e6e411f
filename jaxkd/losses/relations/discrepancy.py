"""The distance between the means of two batches of features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .. import _checks, _numerics
from . import _pairs

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
    """Squared distance between the batch means of student and teacher.

    Also known as: MMD (maximum mean discrepancy) with the linear kernel, DDGSD.

    ``‖mean_i s_i − mean_i t_i‖²``. Xu & Liu, "Data-Distortion Guided Self-Distillation for Deep Neural Networks", AAAI
    2019, for the globally pooled features of two distorted versions of a batch. The mean is over the batch, for each
    feature; some reimplementations take it over the features too, which compares one number per batch. It is symmetric,
    and gradients reach both arguments. `jaxkd.losses.neuron_selectivity` is the maximum mean discrepancy with a
    polynomial kernel, between the channels of one example.

    Args:
      student: features ``[batch, ...]``; all axes but the batch are flattened. Pool maps first.
      teacher: features of the student's shape.
      where: mask, True for the examples to include ``[batch]``; masked examples are in neither mean.
      axis_name: a mapped axis over which the batch is split; the means are those of the global batch.

    Returns:
      The batch's value, for each included example ``[batch]``. It is 0 where no example is included.

    Raises:
      ValueError: shapes differ, or an input is not floating-point ``[batch, ...]``.

    >>> mean_discrepancy(jnp.array([[1.0, 0.0], [3.0, 0.0]]), jnp.array([[0.0, 1.0], [0.0, 1.0]]))
    Array([5., 5.], dtype=float32)
    """
    student, teacher = (
        _checks.floating(name, x, "features [batch, ...]", least_rank=2)
        for name, x in (("student", student), ("teacher", teacher))
    )
    _checks.same_shape(student, teacher, "pool or embed both to one size first")
    where = _checks.mask_or_ones(where, student.shape[:1])
    student, teacher = (_pairs.flat(x) for x in _numerics.mask_inputs(where, student, teacher))
    # The difference is taken before the mean: the means of nearly equal features would round it away.
    difference = student - teacher
    total, count = jnp.sum(difference, axis=0), jnp.sum(where, dtype=difference.dtype)
    if axis_name is not None:
        total, count = (jax.lax.psum(x, axis_name) for x in (total, count))
        # Always true, and it makes the result vary over the devices. Otherwise, without a mask, a checked
        # `jax.shard_map` would take it for one value that all devices share, with the gradient of one device.
        where = where & (jax.lax.axis_index(axis_name) >= 0)
    return jnp.where(where, jnp.sum((total / jnp.maximum(count, 1)) ** 2), 0)
