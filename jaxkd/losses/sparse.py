"""Cross-entropy with targets that list a few of the classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from . import _checks, _numerics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

__all__ = ["sparse_cross_entropy"]


def sparse_cross_entropy(
    student: Float[Array, "*batch classes"],
    weights: Float[Array, "*batch k"],
    indices: Int[Array, "*batch k"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Cross-entropy with a target that lists classes and their weights.

    Also known as: RS-KD (random sampling KD).

    ``−Σ_j w_j log softmax(z)_{i_j}``: `soft_cross_entropy` with the targets ``q_c = Σ_{j: i_j = c} w_j``, without an
    array of all classes for the target. Where the classes are drawn from the teacher and the weights sum to its
    probabilities in expectation, as `jaxkd.cache.codecs.sampled` stores them, the value and its gradient by the student
    are unbiased. Anshumann et al., "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs", ACL 2025.
    `linear_sparse_cross_entropy` takes hidden states instead of logits.

    Args:
      student: logits ``[..., classes]``; ``-inf`` marks a class that cannot occur.
      weights: the weights w, not normalized ``[..., k]``. A weight of 0 adds nothing.
      indices: the classes of these ``[..., k]``. A class may be listed several times: its weights are added. To list
        fewer for some examples, pad with a weight of 0.
      where: mask, True for the examples to include ``[...]``.

    Returns:
      One value per example ``[...]``, in nats; its minimum is the entropy of q, not 0. An included index outside of
      ``[0, classes)`` with a weight gives NaN. A positive weight of an excluded class makes the value infinite; the
      gradient is finite.

    Raises:
      ValueError: the leading shapes differ, a dtype is not floating point, or indices not integers.

    >>> sparse_cross_entropy(jnp.zeros((1, 4)), jnp.array([[0.5, 0.25, 0.25]]), jnp.array([[2, 0, 2]])).round(4)
    Array([1.3863], dtype=float32)
    """
    student = _checks.class_logits("student", student)
    shape, classes = student.shape[:-1], student.shape[-1]
    weights, indices = _checks.listed(weights, indices, shape, f"the student {list(student.shape)}")
    where = _checks.mask(where, shape)
    student, weights = _numerics.mask_inputs(where, student, weights)
    known = (indices >= 0) & (indices < classes)
    valid = jnp.all(known | (weights == 0), axis=-1)
    log_p = jnp.take_along_axis(jax.nn.log_softmax(student), jnp.where(known, indices, 0), axis=-1)
    finite = log_p > -jnp.inf
    values = -jnp.sum(weights * jnp.where(finite, log_p, 0), axis=-1)
    values = values + _numerics.infinite_where(weights, finite | ~known)
    return _numerics.mask_values(jnp.where(valid, values, jnp.nan), where)
