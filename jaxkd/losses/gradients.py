"""Losses of input gradients, and gradient reversal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from . import _checks, _numerics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["jacobian_matching", "reverse_gradient"]


def jacobian_matching(
    student: Float[Array, "batch *input"],
    teacher: Float[Array, "batch *input"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Squared distance between the directions of two input gradients.

    Also known as: Jacobian matching.

    ``‖n(J_s) − n(J_t)‖²`` with ``n(x) = x / ‖x‖₂`` over all axes but the batch. Srinivas & Fleuret, "Knowledge Transfer
    with Jacobian Matching", ICML 2018. J is the gradient of one logit with respect to the input, that of the teacher's
    most probable class, since the Jacobian of all logits is too large. The loss does not depend on the norm of either
    gradient, and lies between 0 and 4.

    Args:
      student: gradient of the student's output with respect to its input ``[batch, ...]``.
      teacher: gradient of the teacher's output, of the same shape.
      where: mask, True for the examples to include ``[batch]``.

    Returns:
      One value per example ``[batch]``. A gradient of norm up to 1e-12 has no direction: n and its derivative are 0
      there.

    Raises:
      ValueError: shapes differ, or an input is not floating-point ``[batch, ...]``.

    >>> jacobian_matching(jnp.array([[3.0, 4.0], [2.0, 0.0]]), jnp.array([[6.0, 8.0], [-1.0, 0.0]]))
    Array([0., 4.], dtype=float32)
    """
    student, teacher = (
        _checks.floating(name, x, "input gradients [batch, ...]", least_rank=2)
        for name, x in (("student", student), ("teacher", teacher))
    )
    _checks.same_shape(student, teacher, "both are gradients with respect to the same input")
    where = _checks.mask(where, student.shape[:1])
    student, teacher = (
        _numerics.direction(x.reshape(x.shape[0], math.prod(x.shape[1:])))[0]
        for x in _numerics.mask_inputs(where, student, teacher)
    )
    return _numerics.mask_values(jnp.sum((student - teacher) ** 2, axis=-1), where)


def reverse_gradient(x: Float[Array, "*shape"], scale: float | Float[Array, ""] = 1.0) -> Float[Array, "*shape"]:
    """Returns ``x``, with ``−scale ∂L/∂x`` as its gradient.

    Also known as: GRL (gradient reversal layer).

    Ganin & Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015. Parameters before it ascend the
    loss that all others descend, such as the temperature of CTKD (Li et al., "Curriculum Temperature for Knowledge
    Distillation", AAAI 2023). Forward mode has the same, negated derivative, but for float16: its reversed gradient is
    clipped to the range of float16, so that no scale makes a finite gradient infinite.

    Args:
      x: any floating-point array.
      scale: factor of the reversed gradient, a number or a traced scalar such as a schedule of the step; it has no
        gradient.

    Returns:
      ``x`` unmodified, in its dtype.

    Raises:
      ValueError: ``x`` is not floating point, or the scale is not a scalar.

    >>> jax.value_and_grad(lambda x: reverse_gradient(x, 0.5) ** 2)(3.0)
    (Array(9., dtype=float32, weak_type=True), Array(-3., dtype=float32, weak_type=True))
    """
    x, scale = jnp.asarray(x), jnp.asarray(_checks.finite("scale", scale))
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x: expected floating point, got {x.dtype}{list(x.shape)}.")
    scale = scale.astype(jnp.promote_types(x.dtype, jnp.float32))
    # Widened, float16 has its gradient clipped when the gradient is narrowed again.
    return _reverse(_checks.widen(x), scale).astype(x.dtype) if x.dtype == jnp.float16 else _reverse(x, scale)


@jax.custom_jvp
def _reverse(x: Array, scale: Array) -> Array:
    return x


@_reverse.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, scale), (d_x, _) = primals, tangents
    return x, (-scale * d_x.astype(scale.dtype)).astype(x.dtype)
