"""Pose losses: the heat-maps of a body's joints, and how they lie to one another.

Heat-maps are ``[batch, height, width, joints]``. The feature term of integral knowledge distillation is
`jaxkd.losses.features.activations.hint_mse`. This file needs only jax and can be lifted out of the package as it
stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["heatmap_mse", "joint_structure"]


def heatmap_mse(
    student: Float[Array, "batch height width joints"],
    teacher: Float[Array, "batch height width joints"],
    *,
    joint_where: Bool[Array, "batch joints"] | None = None,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Heat-maps: ``mean (H_s − H_t)²`` over the positions and joints.

    Xu et al., "Integral Knowledge Distillation for Multi-Person Pose Estimation", IEEE Signal Processing Letters 2020,
    the heat-map term; the same of Zhang, Zhu & Ye, "Fast Human Pose Estimation", CVPR 2019.

    Args:
      student: heat-maps ``[batch, height, width, joints]``.
      teacher: heat-maps of the same shape. With the true heat-maps in their place this is the usual supervised loss.
      joint_where: True for the joints that count ``[batch, joints]``, such as the visible ones. The mean is over those.
      where: True for the examples that count ``[batch]``.

    Returns:
      One value per example ``[batch]``, 0 where no joint counts.

    Raises:
      ValueError: shapes differ, or a dtype is not floating point.

    >>> student, teacher = jnp.zeros((1, 1, 1, 2)), jnp.array([[[[1.0, 3.0]]]])
    >>> heatmap_mse(student, teacher), heatmap_mse(student, teacher, joint_where=jnp.array([[True, False]]))
    (Array([5.], dtype=float32), Array([1.], dtype=float32))
    """
    student, teacher, counts = _inputs(student, teacher, joint_where, where)
    height, width = student.shape[1:3]
    joints = jnp.maximum(jnp.sum(counts, axis=-1), 1).astype(student.dtype)
    return jnp.sum((student - teacher) ** 2, axis=(1, 2, 3)) / (height * width * joints)


def joint_structure(
    student: Float[Array, "batch height width joints"],
    teacher: Float[Array, "batch height width joints"],
    *,
    joint_where: Bool[Array, "batch joints"] | None = None,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Structure of a pose: ``mean (S_s − S_t)²`` over pairs of joints, ``S_ij`` the cosine of the heat-maps i and j.

    Xu et al., "Integral Knowledge Distillation for Multi-Person Pose Estimation", IEEE Signal Processing Letters 2020,
    names a term of the pose's global structure beside those of heat-maps and features. This is its pair-wise form:
    which joints respond at the same places. The mean is over all ordered pairs of joints that count, each with itself
    included.

    Args:
      student: heat-maps ``[batch, height, width, joints]``.
      teacher: heat-maps of the same shape.
      joint_where: True for the joints that count ``[batch, joints]``.
      where: True for the examples that count ``[batch]``.

    Returns:
      One value per example ``[batch]``, 0 where no joint counts. A heat-map of zeros (of a norm up to 1e-12) has
      cosine 0 with all, and no gradient.

    Raises:
      ValueError: shapes differ, or a dtype is not floating point.

    >>> apart, together = jnp.eye(2).reshape(1, 1, 2, 2), jnp.ones((1, 1, 2, 2))
    >>> joint_structure(apart, together).round(4)  # two of four pairs: 0 in place of 1
    Array([0.5], dtype=float32)
    """
    student, teacher, counts = _inputs(student, teacher, joint_where, where)
    joints = jnp.maximum(jnp.sum(counts, axis=-1), 1).astype(student.dtype)
    return jnp.sum((_cosines(student) - _cosines(teacher)) ** 2, axis=(1, 2)) / joints**2


def _cosines(heatmaps: Array) -> Array:
    """Between the heat-maps of every two joints ``[batch, joints, joints]``, 0 for a heat-map of zeros."""
    square = jnp.sum(heatmaps**2, axis=(1, 2), keepdims=True)
    none = square <= 1e-24
    unit = jnp.where(none, 0, heatmaps / jnp.sqrt(jnp.where(none, 1, square)))
    return jnp.einsum("bhwi,bhwj->bij", unit, unit, precision=jax.lax.Precision.HIGHEST)


def _inputs(
    student: Array, teacher: Array, joint_where: Array | None, where: Array | None
) -> tuple[Array, Array, Array]:
    """Heat-maps, 0 for the joints that do not count, and which joints do ``[batch, joints]``."""
    student, teacher = _upcast("student", student), _upcast("teacher", teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher: expected the student's shape {list(student.shape)}, got {list(teacher.shape)}. Nothing is "
            "broadcast or pooled; resize the heat-maps, or select the joints that both know."
        )
    batch, joints = student.shape[0], student.shape[3]
    counts = _check_where(joint_where, (batch, joints), "joint_where")
    counts = jnp.ones((batch, joints), bool) if counts is None else counts
    where = _check_where(where, (batch,))
    if where is not None:
        counts = counts & where[:, None]
    student, teacher = (jnp.where(counts[:, None, None, :], x, 0) for x in (student, teacher))
    return student, teacher, counts


def _upcast(name: str, x: Array) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim != 4:
        raise ValueError(
            f"{name}: expected floating-point heat-maps [batch, height, width, joints], got {x.dtype}{list(x.shape)}."
        )
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _check_where(where: Array | None, shape: tuple[int, ...], name: str = "where") -> Array | None:
    if where is None:
        return None
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_ or where.shape != shape:
        raise ValueError(
            f"{name}: expected bool{list(shape)}, True for what counts, got {where.dtype}{list(where.shape)}."
        )
    return where
