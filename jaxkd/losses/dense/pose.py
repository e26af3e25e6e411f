"""Pose losses: heatmaps of a body's joints, and the relations between them.

Heatmaps are ``[batch, height, width, joints]``. `jaxkd.losses.hint_mse` is the feature term of integral knowledge
distillation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from .. import _checks, _numerics

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
    """Mean squared difference of heatmaps, over positions and joints.

    Also known as: FPD (fast pose distillation), the heatmap term of integral knowledge distillation.

    ``mean (H_s − H_t)²``. Xu et al., "Integral Knowledge Distillation for Multi-Person Pose Estimation", IEEE Signal
    Processing Letters 2020; also Zhang, Zhu & Ye, "Fast Human Pose Estimation", CVPR 2019.

    Args:
      student: heatmaps ``[batch, height, width, joints]``.
      teacher: heatmaps of the same shape. With the true heatmaps instead, this is the usual supervised loss.
      joint_where: mask, True for the joints to include ``[batch, joints]``, such as the visible ones. The mean is over
        these.
      where: mask, True for the examples to include ``[batch]``.

    Returns:
      One value per example ``[batch]``, 0 where no joint is included.

    Raises:
      ValueError: shapes differ, or a dtype is not floating point.

    >>> student, teacher = jnp.zeros((1, 1, 1, 2)), jnp.array([[[[1.0, 3.0]]]])
    >>> heatmap_mse(student, teacher), heatmap_mse(student, teacher, joint_where=jnp.array([[True, False]]))
    (Array([5.], dtype=float32), Array([1.], dtype=float32))
    """
    student, teacher, visible = _inputs(student, teacher, joint_where, where)
    height, width = student.shape[1:3]
    joints = _numerics.count(visible, axis=-1, dtype=student.dtype)
    return jnp.sum((student - teacher) ** 2, axis=(1, 2, 3)) / (height * width * joints)


def joint_structure(
    student: Float[Array, "batch height width joints"],
    teacher: Float[Array, "batch height width joints"],
    *,
    joint_where: Bool[Array, "batch joints"] | None = None,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Mean squared difference of the cosines between joints' heatmaps.

    Also known as: the structure term of integral knowledge distillation.

    ``mean (S_s − S_t)²`` over pairs of joints, ``S_ij`` the cosine of the heatmaps i and j. Xu et al., "Integral
    Knowledge Distillation for Multi-Person Pose Estimation", IEEE Signal Processing Letters 2020, names a term of the
    pose's global structure beside those of heatmaps and features. This is its pair-wise form: which joints respond at
    equal positions. The mean is over all ordered pairs of included joints, each with itself too.

    Args:
      student: heatmaps ``[batch, height, width, joints]``.
      teacher: heatmaps of the same shape.
      joint_where: mask, True for the joints to include ``[batch, joints]``.
      where: mask, True for the examples to include ``[batch]``.

    Returns:
      One value per example ``[batch]``, 0 where no joint is included. A heatmap of norm up to 1e-12 has cosine 0 with
      all others, and gradient 0.

    Raises:
      ValueError: shapes differ, or a dtype is not floating point.

    >>> apart, together = jnp.eye(2).reshape(1, 1, 2, 2), jnp.ones((1, 1, 2, 2))
    >>> joint_structure(apart, together).round(4)  # two of four pairs: 0 in place of 1
    Array([0.5], dtype=float32)
    """
    student, teacher, visible = _inputs(student, teacher, joint_where, where)
    joints = _numerics.count(visible, axis=-1, dtype=student.dtype)
    return jnp.sum((_cosines(student) - _cosines(teacher)) ** 2, axis=(1, 2)) / joints**2


def _cosines(heatmaps: Array) -> Array:
    """Returns the cosines of all pairs of heatmaps ``[batch, joints, joints]``."""
    unit, _ = _numerics.direction(heatmaps, axis=(1, 2))
    return _numerics.einsum("bhwi,bhwj->bij", unit, unit)


def _inputs(
    student: Array, teacher: Array, joint_where: Array | None, where: Array | None
) -> tuple[Array, Array, Array]:
    """Returns heatmaps, 0 for masked joints, and the joints' mask."""
    form = "heatmaps [batch, height, width, joints]"
    student, teacher = (
        _checks.floating(name, x, form, rank=4) for name, x in (("student", student), ("teacher", teacher))
    )
    _checks.same_shape(student, teacher, "resize the heatmaps, or select the joints that both networks have")
    batch, joints = student.shape[0], student.shape[3]
    visible = _checks.mask_or_ones(joint_where, (batch, joints), "joint_where")
    visible = visible & _checks.mask_or_ones(where, (batch,))[:, None]
    student, teacher = (jnp.where(visible[:, None, None, :], x, 0) for x in (student, teacher))
    return student, teacher, visible
