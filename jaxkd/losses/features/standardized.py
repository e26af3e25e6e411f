"""Losses of features that are standardized over the batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .. import _checks, _numerics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["pearson_features"]


def pearson_features(
    student: Float[Array, "batch *feature channels"],
    teacher: Float[Array, "batch *feature channels"],
    *,
    where: Bool[Array, " batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, " batch"]:
    """Half the mean squared difference of features standardized per channel.

    Also known as: PKD (Pearson correlation of features).

    ``½ mean (n(F_s) − n(F_t))²`` with ``n(F) = (F − mean) / (std + 1e-6)`` of each channel over the batch and all
    positions. Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation
    Coefficient", NeurIPS 2022, section 3.3: the mean over the batch is one minus the Pearson correlation of the
    channels, averaged over them, so that magnitudes of the features do not matter. As in the authors' code, the
    standard deviation is that of the sample (``ddof=1``); they sum the levels of a pyramid, with a weight of 6 each.

    Args:
      student: a feature ``[batch, ..., channels]``; a map ``[batch, height, width, channels]`` may differ in height and
        width.
      teacher: a feature of the same rank, batch and channels.
      where: mask, True for the examples to include ``[batch]``; masked examples are in no statistic.
      axis_name: a mapped axis over which the batch is split; the statistics are those of the global batch.

    Returns:
      One value per example ``[batch]``. A channel that is constant over the batch is 0, with gradient 0.

    Raises:
      ValueError: batch, rank or channels differ, or a dtype is not floating point.

    >>> pearson_features(jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[20.0], [10.0], [0.0]])).round(4)
    Array([2., 0., 2.], dtype=float32)
    """
    student = _checks.floating("student", student, "features [batch, ..., channels]", least_rank=2)
    teacher = _checks.floating("teacher", teacher, "features [batch, ..., channels]", least_rank=2)
    if student.ndim == teacher.ndim == 4 and student.shape[::3] == teacher.shape[::3]:
        student, teacher = _numerics.match_size(student, teacher)
    _checks.same_shape(student, teacher, "maps may differ in height and width; project other channels first")
    where = _checks.mask_or_ones(where, student.shape[:1])
    student, teacher = _numerics.mask_inputs(where, student, teacher)
    axes, included = tuple(range(student.ndim - 1)), jnp.expand_dims(where, tuple(range(1, student.ndim)))

    def total(x: Array) -> Array:
        x = jnp.sum(x, axis=axes, keepdims=True)
        return x if axis_name is None else jax.lax.psum(x, axis_name)

    count = total(included.astype(student.dtype)) * math.prod(student.shape[1:-1])

    def standardized(x: Array) -> Array:
        # A shift cancels. This one makes a constant channel exactly 0, where a rounding would be divided by 1e-6.
        shift = jax.lax.stop_gradient(jnp.max(jnp.where(included, x, -jnp.inf), axes, keepdims=True, initial=-jnp.inf))
        shift = shift if axis_name is None else jax.lax.pmax(shift, axis_name)
        x = jnp.where(included, x - jnp.where(jnp.isfinite(shift), shift, 0), 0)
        centered = jnp.where(included, x - total(x) / jnp.maximum(count, 1), 0)
        variance = total(centered**2) / jnp.maximum(count - 1, 1)
        varied = variance > 0
        return jnp.where(varied, centered, 0) / (jnp.sqrt(jnp.where(varied, variance, 1)) + 1e-6)

    apart = standardized(student) - standardized(teacher)
    return jnp.mean(apart**2, axis=tuple(range(1, student.ndim))) / 2
