"""Losses of scores that rank candidates, such as passages for a query."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from . import _checks, _numerics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["margin_mse"]


def margin_mse(
    student: Float[Array, "*batch candidates"],
    teacher: Float[Array, "*batch candidates"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Squared difference of the margins between positive and negative candidates.

    Also known as: Margin-MSE.

    ``mean over negatives of ((s⁺ − s⁻) − (t⁺ − t⁻))²`` with s and t the scores of student and teacher. Hofstätter et
    al., "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation", 2020, equation 4,
    with one negative. Only differences matter: a student whose scores are cosines or dot products learns from a teacher
    of any scale.

    Args:
      student: scores ``[..., 1 + negatives]``, the positive candidate first.
      teacher: the teacher's scores of the same candidates.
      where: mask, True for the examples to include ``[...]``.

    Returns:
      One value per example ``[...]``.

    Raises:
      ValueError: shapes differ, there is no negative, or a dtype is not floating point.

    >>> margin_mse(jnp.array([[3.0, 1.0]]), jnp.array([[10.0, 5.0]]))  # margins of 2 and 5
    Array([9.], dtype=float32)
    """
    student = _checks.floating("student", student, "scores [..., 1 + negatives]", least_rank=1)
    teacher = _checks.floating("teacher", teacher, "scores [..., 1 + negatives]")
    _checks.same_shape(student, teacher, "score the same candidates with both networks")
    advice = "score the positive candidate and at least one negative"
    _checks.several("student", student, student.shape[-1], "candidates", advice)
    where = _checks.mask(where, student.shape[:-1])
    student, teacher = _numerics.mask_inputs(where, student, teacher)
    apart = (student[..., :1] - student[..., 1:]) - (teacher[..., :1] - teacher[..., 1:])
    return _numerics.mask_values(jnp.mean(apart**2, axis=-1), where)
