"""The loss of a detector that adapts to a stream."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxkd.types import Array


def confident_mse(
    student: Float[Array, "batch n values"],
    teacher: Float[Array, "batch n values"],
    objectness: Float[Array, "batch n"],
    *,
    where: Bool[Array, " batch"] | None = None,
    threshold: float = 0.2,
    blend: float = 0.4,
) -> Float[Array, " batch"]:
    """Squared error to a teacher's raw outputs, blended where it sees no object.

    Also known as: TKD.

    The mean over anchors and values of ``(s − y)²``, with ``y = t`` where ``σ(objectness_t) ≥ threshold`` and
    ``y = blend · t + (1 − blend) · s`` elsewhere, a constant for the gradient. Bajestani & Yang, "TKD", WACV 2020, by
    the authors' later code. It is the objective of `jaxkd.schemes.streams.key_frames` as a term:

    ``term(confident_mse, "student/raw", "teacher/raw", "teacher/objectness")``

    Args:
      student: raw outputs of each anchor ``[batch, n, values]``, such as its logits and offsets in one array.
      teacher: the teacher's raw outputs, of the same shape.
      objectness: the teacher's logit of an object at each anchor ``[batch, n]``: of several classes without a
        background the largest logit, of a softmax the log-sum-exp of the others minus the background's.
      where: mask, True for the examples to include ``[batch]``.
      threshold: probability of an object from which the teacher's output is the target.
      blend: share of the teacher in the other targets.

    Returns:
      One value per example ``[batch]``.

    Raises:
      ValueError: the shapes differ, or an array is not floating point.

    >>> student, teacher = jnp.zeros((1, 2, 1)), jnp.ones((1, 2, 1))
    >>> confident_mse(student, teacher, jnp.array([[5.0, -5.0]]))  # (1 + 0.4²) / 2
    Array([0.58], dtype=float32)
    """
    shapes = [list(jnp.shape(x)) for x in (student, teacher, objectness)]
    arrays = [jnp.asarray(x) for x in (student, teacher, objectness)]
    fits = len(shapes[0]) == 3 and shapes[1] == shapes[0] and shapes[2] == shapes[0][:2]
    if not fits or not all(jnp.issubdtype(x.dtype, jnp.floating) for x in arrays):
        raise ValueError(
            "confident_mse: expected floating-point outputs [batch, n, values] of one shape and objectness [batch, n], "
            f"got {shapes[0]}, {shapes[1]} and {shapes[2]}. Student and teacher need the same anchors and values."
        )
    s, t, confidence = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in arrays)
    if where is not None:
        s, t = (jnp.where(where[:, None, None], x, 0) for x in (s, t))
        confidence = jnp.where(where[:, None], confidence, 0)
    confident = (jax.nn.sigmoid(confidence) >= threshold)[..., None]
    target = jax.lax.stop_gradient(jnp.where(confident, t, blend * t + (1 - blend) * s))
    return jnp.mean((s - target) ** 2, axis=(1, 2))
