"""Contrastive losses: the student's embedding of an example should find the teacher's among those of others.

`contrastive_nce` is the loss of contrastive representation distillation, of scores that a memory bank gives.
`info_nce` takes its negatives from the batch; with ``axis_name``, from that of all devices.

This file needs only jax and can be lifted out of the package as it stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

__all__ = ["contrastive_nce", "info_nce"]

_EPSILON = 1e-7


def contrastive_nce(
    scores: Float[Array, "batch candidates"],
    *,
    num_data: float,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Noise-contrastive estimation (CRD): is a candidate the example's own, or drawn from all of the data?

    ``−log(P_0 / (P_0 + K/N + ε)) − Σ_k log((K/N) / (P_k + K/N + ε))`` with ``P = exp(⟨s, t⟩ / τ) / Z`` for the positive
    and K negatives, of N examples, and ε = 1e-7. Tian, Krishnan & Isola, "Contrastive Representation Distillation",
    ICLR 2020, equations 17 to 19 of its appendix. The paper has no ε; this is the loss of the authors' code, which sums
    two of them, one for either network's embedding as the anchor.

    Args:
      scores: P ≥ 0 ``[batch, 1 + K]``, the positive first, normalised already. As that code has it,
        ``[batch, 1 + K, 1]`` is the same.
      num_data: N, the number of examples in the training set, from which the negatives are drawn.
      where: True for the examples that count ``[batch]``; the others give 0 and no gradient, whatever they hold.

    Returns:
      One value per example ``[batch]``. Computed from logarithms, so that no score is too large. It is infinite,
      truly, for a positive of score 0, whose gradient is 0 there. Without negatives there is nothing to tell apart,
      which gives 0.

    Raises:
      ValueError: the scores are not floating point or of another shape, or N is not positive.

    >>> contrastive_nce(jnp.array([[1.0, 0.0, 0.25]]), num_data=8).round(4)
    Array([0.9163], dtype=float32)
    """
    scores = _upcast("scores", scores)
    if scores.ndim == 3 and scores.shape[2] == 1:
        scores = scores[:, :, 0]
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise ValueError(
            f"scores: expected floating-point [batch, 1 + negatives], the positive first, got {scores.dtype}"
            f"{list(scores.shape)}."
        )
    if not num_data > 0:  # NaN is not
        raise ValueError(f"num_data: expected the number of training examples, got {num_data}.")
    where = _mask(where, scores.shape[:1])
    negatives = scores.shape[1] - 1
    if negatives == 0:
        return jnp.zeros_like(scores[:, 0])
    noise = jnp.asarray(negatives / num_data, scores.dtype)
    scores = jnp.where(where[:, None], scores, 1)
    # Below the smallest normal number, the logarithm's slope is no number either.
    possible = scores[:, 0] >= jnp.finfo(scores.dtype).tiny
    log_positive = jnp.log(jnp.where(possible, scores[:, 0], 1))
    positive = jnp.where(possible, jax.nn.softplus(jnp.log(noise + _EPSILON) - log_positive), jnp.inf)
    negative = jax.nn.softplus(jnp.log(scores[:, 1:] + _EPSILON) - jnp.log(noise))
    return jnp.where(where, positive + jnp.sum(negative, axis=1), 0)


def info_nce(
    student: Float[Array, "batch features"],
    teacher: Float[Array, "batch features"],
    labels: Int[Array, " batch"] | None = None,
    *,
    temperature: float | Float[Array, ""] = 0.07,
    where: Bool[Array, " batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, " batch"]:
    """InfoNCE: cross-entropy of finding the teacher's embedding of the same example within the batch.

    ``−log exp(⟨s_i, t_i⟩ / T) / Σ_j exp(⟨s_i, t_j⟩ / T)`` of unit vectors, j over the whole batch. Van den Oord, Li &
    Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018, equation 4, between two networks; it
    is the in-batch form of contrastive representation distillation (ICLR 2020), with its temperature. With labels, as
    there, an example of the anchor's own class is no negative.

    Args:
      student: embeddings ``[batch, features]``; normalised here.
      teacher: embeddings of the student's shape; normalised here.
      labels: integer classes ``[batch]``, to leave out negatives of the anchor's class; None keeps them.
      temperature: T > 0, a scalar, which may be learned.
      where: True for the examples that count ``[batch]``; the others are no one's negative either.
      axis_name: a mapped axis over which the batch is split.

    Returns:
      One value per anchor ``[batch]``, in nats. A batch of one gives 0. A vector of zeros has cosine 0 with all.

    Raises:
      ValueError: shapes differ (nothing is ever broadcast), a dtype is not that of its kind, or T is not positive.

    >>> student, teacher = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    >>> info_nce(student, teacher, temperature=1.0).round(4)
    Array([0.6931, 0.6931], dtype=float32)
    >>> info_nce(student, teacher, jnp.array([3, 3]), temperature=1.0)
    Array([0., 0.], dtype=float32)
    """
    student, teacher = _upcast("student", student), _upcast("teacher", teacher)
    if student.ndim != 2:
        raise ValueError(
            f"student: expected floating-point embeddings [batch, features], got {student.dtype}{list(student.shape)}."
        )
    if teacher.shape != student.shape:
        raise ValueError(
            f"teacher: expected the student's shape {list(student.shape)}, got {list(teacher.shape)}. Nothing is "
            "broadcast; embed both to one size first."
        )
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:  # NaN is not
        raise ValueError(f"temperature: expected a positive number, got {temperature}.")
    where = _mask(where, student.shape[:1])
    student, teacher = (_unit(jnp.where(where[:, None], x, 0)) for x in (student, teacher))
    teachers, every = _gather(teacher, axis_name), _gather(where, axis_name)
    batch = len(where)
    index = jnp.arange(batch) + (0 if axis_name is None else jax.lax.axis_index(axis_name) * batch)
    own = index[:, None] == jnp.arange(len(every))[None, :]
    negative = jnp.broadcast_to(every[None, :], own.shape)
    if labels is not None:
        labels = jnp.asarray(labels)
        if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != (batch,):
            raise ValueError(f"labels: expected integer classes [{batch}], got {labels.dtype}{list(labels.shape)}.")
        negative &= labels[:, None] != _gather(labels, axis_name)[None, :]
    logits = jnp.matmul(student, teachers.T, precision=jax.lax.Precision.HIGHEST) / temperature
    log_sum = jax.nn.logsumexp(logits, axis=1, where=own | negative)
    return jnp.where(where, log_sum - jnp.sum(jnp.where(own, logits, 0), axis=1), 0)


def _unit(x: Array) -> Array:
    """Rows over their L2 norm; a row of zeros stays one and has no slope."""
    square = jnp.sum(x**2, axis=1, keepdims=True)
    norm = jnp.sqrt(jnp.where(square > 0, square, 1))
    return jnp.where(square > 0, x / jnp.maximum(norm, 1e-12), 0)


def _gather(x: Array, axis_name: str | None) -> Array:
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def _upcast(name: str, x: Array) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim < 2:
        raise ValueError(f"{name}: expected floating-point [batch, ...], got {x.dtype}{list(x.shape)}.")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _mask(where: Array | None, shape: tuple[int, ...]) -> Array:
    where = jnp.ones(shape, bool) if where is None else jnp.asarray(where)
    if where.dtype != jnp.bool_ or where.shape != shape:
        raise ValueError(
            f"where: expected bool{list(shape)}, True for what counts, got {where.dtype}{list(where.shape)}."
        )
    return where
