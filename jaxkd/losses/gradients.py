"""Gradient losses: what the student's input gradient should be, and a gradient that is turned around.

This file needs only jax and can be lifted out of the package as it stands.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["jacobian_matching", "reverse_gradient"]


def jacobian_matching(
    student: Float[Array, "batch *input"],
    teacher: Float[Array, "batch *input"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Jacobian matching: ``‖n(J_s) − n(J_t)‖²`` with ``n(x) = x / ‖x‖₂`` over all that follows the batch.

    Srinivas & Fleuret, "Knowledge Transfer with Jacobian Matching", ICML 2018. The paper takes for J the gradient of
    one logit with respect to the input, that of the class which the teacher finds most probable, since the Jacobian of
    all of them is too large. The loss does not see the size of either gradient, and lies between 0 and 4.

    Args:
      student: the gradient of a student's output with respect to its input ``[batch, ...]``.
      teacher: the same of the teacher, of the same shape.
      where: True for the examples that count ``[batch]``.

    Returns:
      One value per example ``[batch]``. A gradient of zeros (of a norm up to 1e-12) has no direction: n is 0 there,
      and so is its own gradient.

    Raises:
      ValueError: shapes differ, or an input is not floating-point ``[batch, ...]``.

    >>> jacobian_matching(jnp.array([[3.0, 4.0], [2.0, 0.0]]), jnp.array([[6.0, 8.0], [-1.0, 0.0]]))
    Array([0., 4.], dtype=float32)
    """
    student, teacher = _upcast("student", student), _upcast("teacher", teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher: expected the student's shape {list(student.shape)}, got {list(teacher.shape)}. Both are "
            "gradients with respect to the same input."
        )
    if where is not None:
        where = jnp.asarray(where)
        if where.dtype != jnp.bool_ or where.shape != student.shape[:1]:
            raise ValueError(
                f"where: expected bool{list(student.shape[:1])}, True for what counts, got {where.dtype}"
                f"{list(where.shape)}."
            )
    student, teacher = (x.reshape(x.shape[0], math.prod(x.shape[1:])) for x in (student, teacher))
    if where is None:
        return jnp.sum((_unit(student) - _unit(teacher)) ** 2, axis=-1)
    student, teacher = (jnp.where(where[:, None], x, 0) for x in (student, teacher))
    return jnp.where(where, jnp.sum((_unit(student) - _unit(teacher)) ** 2, axis=-1), 0)


def reverse_gradient(x: Float[Array, "*shape"], scale: float | Float[Array, ""] = 1.0) -> Float[Array, "*shape"]:
    """Gradient reversal: ``x`` going forward, ``−scale ∂L/∂x`` going back.

    Ganin & Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015. What stands before it ascends the
    loss that all else descends: the temperature of CTKD (Li et al., "Curriculum Temperature for Knowledge
    Distillation", AAAI 2023) is learned so. Forward mode sees the same, negated derivative.

    Args:
      x: any floating-point array.
      scale: how strongly, a number or a traced scalar such as a curriculum of the step; it has no gradient.

    Returns:
      ``x`` as it is, in its own dtype.

    Raises:
      ValueError: ``x`` is not floating point, or the scale no scalar.

    >>> jax.value_and_grad(lambda x: reverse_gradient(x, 0.5) ** 2)(3.0)
    (Array(9., dtype=float32, weak_type=True), Array(-3., dtype=float32, weak_type=True))
    """
    x, scale = jnp.asarray(x), jnp.asarray(scale)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x: expected floating point, got {x.dtype}{list(x.shape)}.")
    if scale.shape != ():
        raise ValueError(f"scale: expected a scalar, got {scale.dtype}{list(scale.shape)}.")
    return _reverse(x, scale.astype(jnp.promote_types(x.dtype, jnp.float32)))


@jax.custom_jvp
def _reverse(x: Array, scale: Array) -> Array:
    return x


@_reverse.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, scale), (d_x, _) = primals, tangents
    return x, (-scale * d_x.astype(scale.dtype)).astype(x.dtype)


def _unit(x: Array) -> Array:
    """``x / ‖x‖`` over the last axis, 0 where the norm is too small for a direction."""
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    none = square <= 1e-24
    return jnp.where(none, 0, x / jnp.sqrt(jnp.where(none, 1, square)))


def _upcast(name: str, gradient: Array) -> Array:
    gradient = jnp.asarray(gradient)
    if not jnp.issubdtype(gradient.dtype, jnp.floating) or gradient.ndim < 2:
        raise ValueError(
            f"{name}: expected floating-point input gradients [batch, ...], got {gradient.dtype}{list(gradient.shape)}."
        )
    return gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32))
