"""Activation losses: the student's activations are to be the teacher's, one by one.

Features are ``[batch, ...]``, maps ``[batch, height, width, channels]``. Every function returns one value per example.
Nothing is ever broadcast. This file needs only jax and can be lifted out of the package as it stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["hint_mse"]


def hint_mse(
    student: Float[Array, "batch *feature"],
    teacher: Float[Array, "batch *feature"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Hint regression: ``mean (F_s − F_t)²`` over all elements of an example's feature.

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3, with the mean of popular code in place
    of the paper's ½ sum (a constant factor). The student's feature has the teacher's channels here;
    `jaxkd.objectives.hint` learns the regressor that makes it so.

    Args:
      student: a feature ``[batch, ...]``; a map ``[batch, height, width, channels]`` may differ in height and width.
      teacher: a feature of the same rank, batch and channels.
      where: True for the examples that count ``[batch]``.

    Returns:
      One value per example ``[batch]``.

    Raises:
      ValueError: batch, rank or channels differ, or a dtype is not floating point.

    >>> hint_mse(jnp.ones((2, 4, 4, 3)), jnp.zeros((2, 4, 4, 3)))
    Array([1., 1.], dtype=float32)
    """
    student, teacher = _upcast("student", student), _upcast("teacher", teacher)
    if student.ndim == teacher.ndim == 4 and student.shape[::3] == teacher.shape[::3]:
        student, teacher = _match_size(student, teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher: expected the student's shape {list(student.shape)} (the height and width of a map may differ), "
            f"got {list(teacher.shape)}. jaxkd.objectives.hint learns a regressor between different channels."
        )
    (student, teacher), where = _keep(where, student, teacher)
    values = jnp.mean((student - teacher) ** 2, axis=tuple(range(1, student.ndim)))
    return _drop(values, where)


def _match_size(student: Array, teacher: Array) -> tuple[Array, Array]:
    """Pools, on each axis, the larger map to the smaller."""
    for axis in (1, 2):
        size = min(student.shape[axis], teacher.shape[axis])
        student, teacher = _adaptive_mean(student, axis, size), _adaptive_mean(teacher, axis, size)
    return student, teacher


def _adaptive_mean(x: Array, axis: int, size: int) -> Array:
    """Means over windows ⌊iN/n⌋ to ⌈(i+1)N/n⌉ along one axis, as PyTorch's adaptive average pooling has them."""
    full = x.shape[axis]
    if full == size:
        return x
    if full % size == 0:
        return jnp.mean(x.reshape(*x.shape[:axis], size, full // size, *x.shape[axis + 1 :]), axis=axis + 1)
    bounds = [(i * full // size, -(-(i + 1) * full // size)) for i in range(size)]
    windows = [[(start <= j < stop) / (stop - start) for j in range(full)] for start, stop in bounds]
    pooled = jnp.tensordot(jnp.array(windows, x.dtype), x, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(pooled, 0, axis)


def _upcast(name: str, feature: Array) -> Array:
    feature = jnp.asarray(feature)
    if not jnp.issubdtype(feature.dtype, jnp.floating) or feature.ndim < 2:
        raise ValueError(f"{name}: expected floating-point [batch, ...], got {feature.dtype}{list(feature.shape)}.")
    return feature.astype(jnp.promote_types(feature.dtype, jnp.float32))


def _keep(where: Array | None, student: Array, teacher: Array) -> tuple[tuple[Array, Array], Array | None]:
    """Zeros the examples that do not count before anything nonlinear can see them."""
    if where is None:
        return (student, teacher), None
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_ or where.shape != student.shape[:1]:
        raise ValueError(
            f"where: expected bool{list(student.shape[:1])}, True for what counts, got {where.dtype}"
            f"{list(where.shape)}."
        )
    student, teacher = (jnp.where(jnp.expand_dims(where, tuple(range(1, x.ndim))), x, 0) for x in (student, teacher))
    return (student, teacher), where


def _drop(values: Array, where: Array | None) -> Array:
    return values if where is None else jnp.where(where, values, 0)
