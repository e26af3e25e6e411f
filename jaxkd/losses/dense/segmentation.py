"""Segmentation losses: every pixel's classes, and how the positions of a feature map lie to one another.

Maps are ``[batch, height, width, channels]``. This file needs only jax and can be lifted out of the package as it
stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["pixel_kl", "pair_affinity"]


def pixel_kl(
    student: Float[Array, "batch height width classes"],
    teacher: Float[Array, "batch height width classes"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    where: Bool[Array, "batch height width"] | None = None,
) -> Float[Array, "batch height width"]:
    """Pixel-wise distillation: ``T² KL(p_t ‖ p_s)`` with ``p = softmax(z / T)`` at each pixel.

    Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, section 3.1, with T = 1; the
    paper's value is the mean over the pixels. Code that divides by the number of classes too is smaller by that.

    Args:
      student: logits ``[batch, height, width, classes]``.
      teacher: logits of the same shape. A class that is ``-inf`` for both adds nothing.
      temperature: T > 0.
      where: True for the pixels that count ``[batch, height, width]``, such as those that are labelled.

    Returns:
      One value per pixel ``[batch, height, width]``, in nats times T². Infinite where the student excludes a class
      that the teacher does not, with finite gradients.

    Raises:
      ValueError: shapes differ (resize the logits first), dtypes are not floating, or T is not positive.

    >>> pixel_kl(jnp.zeros((1, 1, 1, 2)), jnp.log(jnp.array([[[[0.75, 0.25]]]]))).round(4)
    Array([[[0.1308]]], dtype=float32)
    """
    student, teacher = _upcast("student", student), _upcast("teacher", teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher: expected the student's shape {list(student.shape)}, got {list(teacher.shape)}. Nothing is "
            "broadcast or pooled; resize the logits of one of them, as for the labels."
        )
    where = _check_where(where, student.shape[:3])
    if where is not None:
        student, teacher = (jnp.where(where[..., None], x, 0) for x in (student, teacher))
    scale = _temperature(temperature, student.dtype)
    (log_student, known_s), (log_teacher, known_t) = _log_softmax(student / scale), _log_softmax(teacher / scale)
    target = jnp.where(known_t, jnp.exp(log_teacher), 0)
    # What is infinite is added as a constant: the product of the infinity and the target has no finite slope.
    infinite = jnp.where(jnp.any((target > 0) & ~known_s, axis=-1), jnp.inf, 0)
    return _drop(scale**2 * jnp.sum(target * (log_teacher - log_student), axis=-1) + infinite, where)


def pair_affinity(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch height_t width_t channels_t"],
    *,
    pool: int = 1,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Pair-wise distillation: ``mean_ij (a_ij(s) − a_ij(t))²``, ``a_ij`` the cosine between the features at i and j.

    Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, section 3.1, over all pairs
    of positions, each with itself included. The extended version (TPAMI 2020) pools β positions into a node of the
    affinity graph, as ``pool`` does.

    The affinities take ``(height · width / pool²)²`` elements for each image and network.

    Args:
      student: a feature map ``[batch, height, width, channels]``.
      teacher: a feature map of the same batch; its channels, height and width may differ. The larger map is
        adaptive-average-pooled to the smaller.
      pool: side of the windows that become one position by their average; it has to divide height and width.
      where: True for the examples that count ``[batch]``.

    Returns:
      One value per example ``[batch]``. A position whose features are all zero (of a norm up to 1e-12) has cosine 0
      with every position, and no gradient.

    Raises:
      ValueError: an input is not a floating-point feature map, the batches differ, or the windows do not fit.

    >>> student, teacher = jnp.array([[[[1.0, 0.0], [0.0, 1.0]]]]), jnp.ones((1, 1, 2, 3))
    >>> pair_affinity(student, teacher).round(4)  # two of four pairs: 0 in place of 1
    Array([0.5], dtype=float32)
    """
    student, teacher = _upcast("student", student), _upcast("teacher", teacher)
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(f"teacher: expected the student's batch of {student.shape[0]}, got {teacher.shape[0]}.")
    where = _check_where(where, student.shape[:1])
    if where is not None:
        student, teacher = (jnp.where(where[:, None, None, None], x, 0) for x in (student, teacher))
    student, teacher = _match_size(student, teacher)
    batch, height, width, _ = student.shape
    if pool < 1 or height % pool or width % pool:
        raise ValueError(f"pool: expected a window that divides height and width {[height, width]}, got {pool}.")

    def affinity(x: Array) -> Array:
        x = jnp.mean(x.reshape(batch, height // pool, pool, width // pool, pool, x.shape[-1]), axis=(2, 4))
        unit = _unit(x).reshape(batch, (height // pool) * (width // pool), x.shape[-1])
        return jnp.einsum("bic,bjc->bij", unit, unit, precision=jax.lax.Precision.HIGHEST)

    return _drop(jnp.mean((affinity(student) - affinity(teacher)) ** 2, axis=(1, 2)), where)


def _temperature(temperature: float | Array, dtype: jnp.dtype) -> Array:
    value = jnp.asarray(temperature, dtype)
    if value.shape != ():
        raise ValueError(f"temperature: expected a scalar, got {value.dtype}{list(value.shape)}.")
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:  # NaN is not
        raise ValueError(f"temperature: expected a positive number, got {temperature}.")
    return value


def _log_softmax(scores: Array) -> tuple[Array, Array]:
    """Over what is not ``-inf``, and what that is; finite also at the rest, and where nothing is left."""
    known = scores != -jnp.inf
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf))
    shifted = jnp.where(known, scores - jnp.where(top == -jnp.inf, 0, top), 0)
    total = jnp.sum(jnp.where(known, jnp.exp(shifted), 0), axis=-1, keepdims=True)
    return shifted - jnp.log(jnp.where(total == 0, 1, total)), known


def _unit(x: Array) -> Array:
    """``x / ‖x‖`` over the last axis, 0 where the norm is too small for a direction."""
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    none = square <= 1e-24
    return jnp.where(none, 0, x / jnp.sqrt(jnp.where(none, 1, square)))


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


def _upcast(name: str, x: Array) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim != 4:
        raise ValueError(
            f"{name}: expected a floating-point map [batch, height, width, channels], got {x.dtype}{list(x.shape)}."
        )
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _check_where(where: Array | None, shape: tuple[int, ...]) -> Array | None:
    if where is None:
        return None
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_ or where.shape != shape:
        raise ValueError(
            f"where: expected bool{list(shape)}, True for what counts, got {where.dtype}{list(where.shape)}."
        )
    return where


def _drop(values: Array, where: Array | None) -> Array:
    return values if where is None else jnp.where(where, values, 0)
