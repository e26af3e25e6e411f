"""Attention losses: where, rather than with which channels, the teacher's feature map is active.

Feature maps are ``[batch, height, width, channels]``. Every function returns one value per example. Where a student's
and a teacher's map differ in spatial size, the larger is adaptive-average-pooled to the smaller. This file needs only
jax and can be lifted out of the package as it stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["attention_transfer"]


def attention_transfer(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch height_t width_t channels_t"],
    *,
    p: float = 2.0,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Attention transfer: ``mean (Q_s − Q_t)²`` over positions, ``Q = n(vec(mean_c |F|^p))``, ``n(x) = x/‖x‖₂``.

    Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017, equation 2. The paper takes the norm of the
    difference; the authors' code, and this, the mean of its square over the positions, which the published weight of
    1000 goes with. Positions, not channels, are compared, so the channels may differ.

    Args:
      student: a feature map ``[batch, height, width, channels]``.
      teacher: a feature map of the same batch; its channels, height and width may differ.
      p: the power of the activations, > 0.
      where: True for the examples that count ``[batch]``.

    Returns:
      One value per example ``[batch]``. An all-zero map has no attention: Q is 0 there, with a zero gradient.

    Raises:
      ValueError: an input is not a floating-point feature map, the batches differ, or p is not positive.

    >>> peak = jnp.zeros((1, 2, 2, 3)).at[0, 0, 0].set(5.0)
    >>> attention_transfer(peak, jnp.ones((1, 2, 2, 8)))
    Array([0.25], dtype=float32)
    """
    student, teacher = _upcast("student", student), _upcast("teacher", teacher)
    for name, x in (("student", student), ("teacher", teacher)):
        if x.ndim != 4:
            raise ValueError(f"{name}: expected a feature map [batch, height, width, channels], got {list(x.shape)}.")
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(f"teacher: expected the student's batch of {student.shape[0]}, got {teacher.shape[0]}.")
    if p <= 0:
        raise ValueError(f"p: expected a positive power, got {p}.")
    (student, teacher), where = _keep(where, student, teacher)
    student, teacher = _match_size(student, teacher)
    values = jnp.mean((_attention(student, p) - _attention(teacher, p)) ** 2, axis=-1)
    return _drop(values, where)


def _attention(features: Array, p: float) -> Array:
    """``[batch, height, width, channels]`` to a unit vector over positions, ``[batch, height · width]``."""
    energy = features**2 if p == 2 else jnp.where(features == 0, 0, jnp.abs(jnp.where(features == 0, 1, features)) ** p)
    batch, height, width, _ = features.shape
    attention = jnp.mean(energy, axis=-1).reshape(batch, height * width)
    square = jnp.sum(attention**2, axis=-1, keepdims=True)
    norm = jnp.sqrt(jnp.where(square > 0, square, 1))  # an all-zero map: sqrt has no slope at 0
    return attention / jnp.maximum(norm, 1e-12)


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
