"""Contrastive losses: identifying the teacher's embedding of an example.

`contrastive_nce` is the loss of contrastive representation distillation on scores that a memory bank gives. `info_nce`
takes its negatives from the batch, with ``axis_name`` from the batches of all devices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from . import _checks, _numerics

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
    """Noise-contrastive estimation of one positive among K negatives.

    Also known as: CRD (contrastive representation distillation), NCE.

    ``−log(P_0 / (P_0 + K/N + ε)) − Σ_k log((K/N) / (P_k + K/N + ε))`` with ``P = exp(⟨s, t⟩ / τ) / Z`` of the positive
    and of K negatives that are drawn from N examples, and ε = 1e-7: the loss of classifying each candidate as the
    example's own or as drawn from all of the data. Tian, Krishnan & Isola, "Contrastive Representation Distillation",
    ICLR 2020, equations 17 to 19 of its appendix. The paper has no ε; this is the loss of the authors' code, which adds
    two of them, with the student's and with the teacher's embedding as the anchor.

    Args:
      scores: P ≥ 0 ``[batch, 1 + K]``, the positive first, divided by Z. ``[batch, 1 + K, 1]``, the shape in the
        authors' code, is accepted too.
      num_data: N, the number of examples in the training set, from which the negatives are drawn.
      where: mask, True for the examples to include ``[batch]``.

    Returns:
      One value per example ``[batch]``. It is computed from logarithms, so that no score overflows. It is infinite for
      a positive of score 0, with gradient 0, and 0 if there are no negatives.

    Raises:
      ValueError: the scores are not floating point or of another shape, or N is not positive.

    >>> contrastive_nce(jnp.array([[1.0, 0.0, 0.25]]), num_data=8).round(4)
    Array([0.9163], dtype=float32)
    """
    scores = _checks.floating("scores", scores, "scores [batch, 1 + negatives]", least_rank=2)
    if scores.ndim == 3 and scores.shape[2] == 1:
        scores = scores[:, :, 0]
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise ValueError(
            f"scores: expected floating-point [batch, 1 + negatives], the positive first, got {scores.dtype}"
            f"{list(scores.shape)}."
        )
    _checks.positive("num_data", num_data, expected="the positive number of training examples")
    where = _checks.mask_or_ones(where, scores.shape[:1])
    negatives = scores.shape[1] - 1
    if negatives == 0:
        return jnp.zeros_like(scores[:, 0])
    noise = jnp.asarray(negatives / num_data, scores.dtype)
    scores = jnp.where(where[:, None], scores, 1)
    # The derivative of the logarithm overflows below the smallest normal number.
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
    """Cross-entropy of identifying the teacher's embedding of the same example.

    Also known as: InfoNCE, NT-Xent, in-batch CRD.

    ``−log exp(⟨s_i, t_i⟩ / T) / Σ_j exp(⟨s_i, t_j⟩ / T)`` of unit vectors, j over the whole batch. Van den Oord, Li &
    Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018, equation 4, between two networks; it is
    the in-batch form of contrastive representation distillation (ICLR 2020), with its temperature. With labels, as
    there, an example of the anchor's own class is not a negative.

    Args:
      student: embeddings ``[batch, features]``, normalized by the loss.
      teacher: embeddings of the student's shape, normalized by the loss.
      labels: integer classes ``[batch]``, to exclude negatives of the anchor's class; None keeps them.
      temperature: T > 0, a scalar, which may be learned.
      where: mask, True for the examples to include ``[batch]``; masked examples are no negatives.
      axis_name: a mapped axis over which the batch is split.

    Returns:
      One value per anchor ``[batch]``, in nats. A batch of one gives 0. A vector of zeros has cosine 0 with all.

    Raises:
      ValueError: shapes differ, a dtype is not floating point (of the labels, integer), or T is not positive.

    >>> student, teacher = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    >>> info_nce(student, teacher, temperature=1.0).round(4)
    Array([0.6931, 0.6931], dtype=float32)
    >>> info_nce(student, teacher, jnp.array([3, 3]), temperature=1.0)
    Array([0., 0.], dtype=float32)
    """
    student = _checks.floating("student", student, "embeddings [batch, features]", rank=2)
    teacher = _checks.floating("teacher", teacher, "embeddings [batch, features]")
    _checks.same_shape(student, teacher, "embed both to one size first")
    _checks.positive("temperature", temperature)
    where = _checks.mask_or_ones(where, student.shape[:1])
    student, teacher = (_numerics.unit(x) for x in _numerics.mask_inputs(where, student, teacher))
    teachers, every = _numerics.gather(teacher, axis_name), _numerics.gather(where, axis_name)
    batch = len(where)
    own = _numerics.local_rows(batch, axis_name)[:, None] == jnp.arange(len(every))[None, :]
    negative = jnp.broadcast_to(every[None, :], own.shape)
    if labels is not None:
        labels = jnp.asarray(labels)
        if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != (batch,):
            raise ValueError(f"labels: expected integer classes [{batch}], got {labels.dtype}{list(labels.shape)}.")
        negative &= labels[:, None] != _numerics.gather(labels, axis_name)[None, :]
    logits = _numerics.einsum("if,jf->ij", student, teachers) / temperature
    log_sum = jax.nn.logsumexp(logits, axis=1, where=own | negative)
    return jnp.where(where, log_sum - jnp.sum(jnp.where(own, logits, 0), axis=1), 0)
