"""KL divergences between the softmaxes of student and teacher, and their mixtures.

Probabilities are handled by their logarithms and never clipped, so that confident networks and excluded (``-inf``)
classes keep exact values and finite gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from . import _checks, _numerics, _top_k

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

__all__ = ["soft_target_kl", "reverse_kl", "generalized_jsd", "skew_kl", "skew_reverse_kl", "top_k_kl"]


def soft_target_kl(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    temperature: float | Float[Array, "*#batch"] = 4.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """KL divergence ``KL(p_t ‖ p_s)`` of softened probabilities, times T².

    Also known as: KD (knowledge distillation), soft targets, response distillation.

    ``T² KL(p_t ‖ p_s)`` with ``p = softmax(z / T)``, summed over the classes. Hinton, Vinyals & Dean, "Distilling the
    Knowledge in a Neural Network", 2015, section 2. The factor T² keeps the size of the gradient as T changes. The
    paper's cross-entropy is larger by the entropy of the teacher, which has no gradient for the student. PyTorch code
    with ``reduction="mean"`` also divides by the number of classes; this is ``reduction="batchmean"``.

    Args:
      student: logits ``[..., classes]``.
      teacher: logits ``[..., classes]``. A class that is ``-inf`` for both adds nothing.
      temperature: T > 0, a scalar or one for each example ``[...]``. The default is the value of most published results
        on CIFAR-100; language models are distilled at 1, the default of `linear_soft_target_kl`.
      where: mask, True for the examples to include ``[...]``.

    Returns:
      One value per example ``[...]``, in nats times T². It is infinite where only the student has ``-inf``.

    Raises:
      ValueError: shapes differ (nothing is broadcast), there is one class (`binary_kl`), a dtype is not floating point,
        or T is not positive.

    >>> soft_target_kl(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 3.0]]), temperature=2.0).round(4)
    Array([1.6313], dtype=float32)
    """
    student, teacher, scale, where = _numerics.softened(student, teacher, temperature, where)
    return _numerics.mask_values(scale**2 * _numerics.softmax_kl(teacher, student), where)


def reverse_kl(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    temperature: float | Float[Array, "*#batch"] = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Reverse KL divergence ``KL(p_s ‖ p_t)`` of softened probabilities, times T².

    Also known as: RKL, mode-seeking KL, MiniLLM.

    ``T² KL(p_s ‖ p_t)`` with ``p = softmax(z / T)``. Gu et al., "MiniLLM", ICLR 2024, equation 1, for one token; the
    authors sample it from the student's sequences.

    Args:
      student: logits ``[..., classes]``. A class that is ``-inf`` adds nothing.
      teacher: logits ``[..., classes]``.
      temperature: T > 0, a scalar or one for each example ``[...]``.
      where: mask, True for the examples to include ``[...]``.

    Returns:
      One value per example ``[...]``, in nats times T². It is infinite where only the teacher has ``-inf``.

    Raises:
      ValueError: shapes differ, a dtype is not floating point, or T is not positive.

    >>> reverse_kl(jnp.array([[0.0, 3.0]]), jnp.array([[1.0, 0.0]]), temperature=2.0).round(4)
    Array([1.6313], dtype=float32)
    """
    student, teacher, scale, where = _numerics.softened(student, teacher, temperature, where)
    return _numerics.mask_values(scale**2 * _numerics.softmax_kl(student, teacher), where)


def generalized_jsd(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    beta: float | Float[Array, ""] = 0.5,
    temperature: float | Float[Array, "*#batch"] = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Generalized Jensen–Shannon divergence between student and teacher.

    Also known as: JSD(β), GKD (generalized knowledge distillation).

    ``β KL(p_t ‖ m) + (1−β) KL(p_s ‖ m)`` with ``m = β p_t + (1−β) p_s`` and ``p = softmax(z / T)``. Agarwal et al.,
    "On-Policy Distillation of Language Models", ICLR 2024, equation 1; as there, without T². By convention β = 0 is
    ``KL(p_t ‖ p_s)`` and β = 1 is ``KL(p_s ‖ p_t)``: the limits of JSD/β and of JSD/(1−β), since JSD itself vanishes at
    both ends. Some code exchanges β and 1−β.

    Args:
      student: logits ``[..., classes]``.
      teacher: logits ``[..., classes]``. A class that is ``-inf`` for both adds nothing.
      beta: the teacher's share of the mixture, a number from 0 to 1.
      temperature: T > 0, a scalar or one for each example ``[...]``.
      where: mask, True for the examples to include ``[...]``.

    Returns:
      One value per example ``[...]``, in nats. For 0 < β < 1 it is at most the entropy of (β, 1−β), hence finite.

    Raises:
      ValueError: shapes differ, a dtype is not floating point, β is outside [0, 1], or T is not positive.

    >>> generalized_jsd(jnp.array([[40.0, 0.0]]), jnp.array([[0.0, 40.0]]))  # log 2, where KL(p_t ‖ p_s) is 40
    Array([0.6931], dtype=float32)
    """
    _checks.fraction("beta", beta)
    traced = isinstance(beta, jax.core.Tracer)
    student, teacher, _, where = _numerics.softened(student, teacher, temperature, where)
    if not traced and beta in (0, 1):
        return _numerics.mask_values(_numerics.softmax_kl(*((student, teacher) if beta else (teacher, student))), where)
    share = beta
    if traced:  # a value outside [0, 1] is unknown at trace time and yields NaN; the two limits are selected below
        share = jnp.where((beta == 0) | (beta == 1), 0.5, jnp.where((beta > 0) & (beta < 1), beta, jnp.nan))
    values = _jsd(student, teacher, jnp.asarray(share, student.dtype))
    if traced:
        values = jnp.where(beta == 0, _numerics.softmax_kl(teacher, student), values)
        values = jnp.where(beta == 1, _numerics.softmax_kl(student, teacher), values)
    return _numerics.mask_values(values, where)


@jax.custom_jvp
def _jsd(student: Array, teacher: Array, share: Array) -> Array:
    """Jensen–Shannon divergence between the softmaxes of softened scores."""
    log_student, log_teacher = (x - _numerics.log_normalizer(x) for x in (student, teacher))
    to_student, to_teacher = _to_mixture(log_student, log_teacher, share)
    neither = (log_student == -jnp.inf) & (log_teacher == -jnp.inf)
    return jnp.sum(jnp.where(neither, 0, (1 - share) * to_student + share * to_teacher), axis=-1)


def _to_mixture(log_student: Array, log_teacher: Array, share: Array) -> tuple[Array, Array]:
    """Returns the terms of the KLs of student and of teacher to their mixture."""
    log_mixture = _numerics.log_mixture(log_teacher, log_student, share)
    p, q = jnp.exp(log_student), jnp.exp(log_teacher)
    mixture = share * q + (1 - share) * p
    of_student = _numerics.kl_terms(log_student - log_mixture, p, mixture)
    return of_student, _numerics.kl_terms(log_teacher - log_mixture, q, mixture)


@_jsd.defjvp
def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    """Leaves out the mixture's own part, which is 0; autodiff keeps many arrays."""
    share = primals[2]
    # What the value needs is computed again for the derivative, since its exponentials would be arrays to store.
    value, scores = jax.lax.optimization_barrier((_jsd(*primals), primals[:2]))
    logs = [x - _numerics.log_normalizer(x) for x in scores]
    log_mixture = _numerics.log_mixture(logs[1], logs[0], share)
    by_logits = jnp.zeros_like(value)
    for log_p, weight, tangent in zip(logs, (1 - share, share), tangents[:2], strict=True):
        p = jnp.exp(log_p)
        slope = _numerics.slope(p, log_p - log_mixture)
        slope = weight * (slope - p * jnp.sum(slope, axis=-1, keepdims=True))
        by_logits = by_logits + jnp.sum(slope * tangent, axis=-1)
    to_student, to_teacher = _to_mixture(logs[0], logs[1], share)
    return value, by_logits + jnp.sum(to_teacher - to_student, axis=-1) * tangents[2]


def skew_kl(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    alpha: float | Float[Array, ""] = 0.1,
    temperature: float | Float[Array, "*#batch"] = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """KL divergence of the teacher against a mixture of teacher and student.

    Also known as: SKL, DistiLLM.

    ``T² KL(p_t ‖ α p_t + (1−α) p_s)`` with ``p = softmax(z / T)``. Ko et al., "DistiLLM: Towards Streamlined
    Distillation for Large Language Models", ICML 2024, section 3.1, where T = 1. With α = 0 it is `soft_target_kl`. The
    authors' code takes the logarithm of the mixed probabilities, which is ``-inf`` where both underflow; this mixes
    logarithms.

    Args:
      student: logits ``[..., classes]``.
      teacher: logits ``[..., classes]``. A class that is ``-inf`` for both adds nothing.
      alpha: the teacher's share of the mixture, a number from 0 to 1.
      temperature: T > 0, a scalar or one for each example ``[...]``.
      where: mask, True for the examples to include ``[...]``.

    Returns:
      One value per example ``[...]``, in nats times T², at most ``-log α`` times T²: finite even where the student
      excludes a class that the teacher does not.

    Raises:
      ValueError: shapes differ, a dtype is not floating point, α is outside [0, 1], or T is not positive.

    >>> skew_kl(jnp.array([[0.0, 100.0]]), jnp.array([[100.0, 0.0]]), alpha=0.1).round(4)  # log 10, in place of 100
    Array([2.3026], dtype=float32)
    """
    return _skewed(student, teacher, alpha, temperature, where)


def skew_reverse_kl(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    alpha: float | Float[Array, ""] = 0.1,
    temperature: float | Float[Array, "*#batch"] = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """KL divergence of the student against a mixture of student and teacher.

    Also known as: SRKL, DistiLLM.

    ``T² KL(p_s ‖ (1−α) p_t + α p_s)`` with ``p = softmax(z / T)``. Ko et al., "DistiLLM: Towards Streamlined
    Distillation for Large Language Models", ICML 2024, section 3.1. With α = 0 it is `reverse_kl`. It is `skew_kl` with
    student and teacher exchanged, so that α is the student's share of the mixture.

    Args:
      student: logits ``[..., classes]``.
      teacher: logits ``[..., classes]``. A class that is ``-inf`` for both adds nothing.
      alpha: the student's share of the mixture, a number from 0 to 1.
      temperature: T > 0, a scalar or one for each example ``[...]``.
      where: mask, True for the examples to include ``[...]``.

    Returns:
      One value per example ``[...]``, in nats times T², at most ``-log α`` times T².

    Raises:
      ValueError: shapes differ, a dtype is not floating point, α is outside [0, 1], or T is not positive.

    >>> skew_reverse_kl(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]]), alpha=0.1).round(4)
    Array([0.7233], dtype=float32)
    """
    return _skewed(student, teacher, alpha, temperature, where, reverse=True)


def top_k_kl(
    student: Float[Array, "*batch classes"],
    log_probs: Float[Array, "*batch k"],
    indices: Int[Array, "*batch k"],
    *,
    temperature: float | Float[Array, "*#batch"] = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """KL divergence to a teacher of which k classes and their tail are known.

    Also known as: top-k distillation, sparse logits with a tail bucket.

    ``T² (Σ_k p_t log(p_t / p_s) + r_t log(r_t / r_s))`` with r the probability of all other classes, the tail, as one
    bucket, and ``p_s = softmax(z / T)``. Merging classes never raises a KL, so this is a lower bound of
    ``T² KL(p_t ‖ p_s)``: it rises with k, is never negative, is 0 when the student agrees on the k classes, and is the
    whole KL when k is the number of classes. A sum over the k classes alone is no bound: it can be negative, and
    clamped to 0 it has no gradient. Renormalized to the k classes, it leaves the student free to put its probability on
    all the others: it can be 2.5e-7 where the KL is 1.77 and this bound 1.76.

    Value and gradient take little more memory than the student's logits and the gradient themselves; `linear_top_k_kl`
    needs neither.

    Args:
      student: logits ``[..., classes]``.
      log_probs: the teacher's log-probabilities, normalized over all classes, of its k known classes ``[..., k]``, at
        the same temperature: ``log_softmax(z_t / T)``. ``-inf`` is probability 0 and adds nothing. If rounding makes
        them sum to 1 or more, there is no tail.
      indices: the classes of these ``[..., k]``. A class that is listed twice, with one log-probability, counts once.
        To keep fewer for some examples, pad with a log-probability of ``-inf`` and the index -1.
      temperature: T > 0 of the student, a scalar or one for each example ``[...]``.
      where: mask, True for the examples to include ``[...]``.

    Returns:
      One value per example ``[...]``, in nats times T². An included index outside ``[0, classes)``, padding apart,
      gives NaN, and so does a class that is listed with two log-probabilities. It is infinite where the student
      excludes (``-inf``) a class that the teacher does not; the gradient is finite.

    Raises:
      ValueError: the leading shapes differ, k is 0 or more than the classes, a dtype is not floating point, indices are
        not integers, or T is not positive.

    >>> teacher, student = jnp.log(jnp.array([[0.5, 0.3, 0.1, 0.1]])), jnp.log(jnp.array([[0.2, 0.2, 0.3, 0.3]]))
    >>> log_probs, indices = jax.lax.top_k(teacher, 2)
    >>> top_k_kl(student, log_probs, indices).round(4)  # the tail has 0.2 of the teacher and 0.6 of the student
    Array([0.3601], dtype=float32)
    """
    student = _checks.class_logits("student", student)
    shape, classes = student.shape[:-1], student.shape[-1]
    log_probs, indices = _top_k.checked(log_probs, indices, shape, classes, f"the student {list(student.shape)}")
    scale = _checks.temperature(temperature, student.dtype, shape)
    where = _checks.mask(where, shape)
    student, log_probs = _numerics.mask_inputs(where, student, log_probs)
    known = (indices >= 0) & (indices < classes)
    first = _top_k.first_of_each(indices, known)
    log_student, log_tail = _known_and_tail(student, scale, jnp.where(known, indices, 0), first)
    value, valid, _ = _top_k.divergence(log_probs, indices, known, log_student, log_tail)
    return _numerics.mask_values(scale**2 * jnp.where(valid, value, jnp.nan), where)


@jax.custom_jvp
def _known_and_tail(student: Array, scale: Array, indices: Array, first: Array) -> tuple[Array, Array]:
    """Returns the student's log-probabilities of classes, and of all others."""
    return _known_tail_and_others(student, scale, indices, first)[:2]


def _known_tail_and_others(
    student: Array, scale: Array, indices: Array, first: Array
) -> tuple[Array, Array, Array, Array]:
    """Returns those of `_known_and_tail`, and the other classes' exponentials and sum.

    The exponentials are those of the scores up to a constant.

    Only the other classes take a pass of exponentials over the vocabulary: the normalizer is their sum and the k known
    scores. One minus the known probabilities would be their rounding where the tail is small.
    """
    scores = _numerics.soften(student, scale)
    kept = _top_k.in_set(_top_k.bit_set(indices, first, student.shape[-1]), student.shape[-1])
    others = jnp.where(kept, -jnp.inf, scores)
    top = jnp.max(others, axis=-1, initial=-jnp.inf)
    top = jnp.where(top > -jnp.inf, top, 0)
    exponentials = jnp.exp(others - top[..., None])
    total = jnp.sum(exponentials, axis=-1)
    tail, own = top + jnp.log(total), jnp.take_along_axis(scores, indices, axis=-1)
    mass = jax.nn.logsumexp(jnp.concatenate([jnp.where(first, own, -jnp.inf), tail[..., None]], axis=-1), axis=-1)
    return own - mass[..., None], tail - mass, exponentials, total


@_known_and_tail.defjvp
def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Any, Any]:
    """Fuses the exponentials into the gradient; autodiff keeps two arrays of them."""
    (student, scale, indices, first), (d_student, d_scale, *_) = primals, tangents
    own, log_tail, exponentials, total = _known_tail_and_others(*primals)
    scores, scale = _numerics.soften(student, scale), scale[..., None]
    finite = scores > -jnp.inf
    d = jnp.where(finite, (d_student - jnp.where(finite, scores, 0) * d_scale[..., None]) / scale, 0)
    d_known = jnp.take_along_axis(d, indices, axis=-1)
    d_tail = jnp.sum(exponentials * d, axis=-1) / jnp.where(total > 0, total, 1)
    d_mass = jnp.exp(log_tail) * d_tail + jnp.sum(jnp.where(first, jnp.exp(own), 0) * d_known, axis=-1)
    return (own, log_tail), (d_known - d_mass[..., None], d_tail - d_mass)


def _skewed(
    student: Array,
    teacher: Array,
    alpha: float | Array,
    temperature: float | Array,
    where: Array | None,
    *,
    reverse: bool = False,
) -> Array:
    """Skew KL of the teacher, or of the student if ``reverse``."""
    student, teacher, scale, where = _numerics.softened(student, teacher, temperature, where)
    _checks.fraction("alpha", alpha)
    log_p, log_q = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
    log_p, log_q = (log_q, log_p) if reverse else (log_p, log_q)
    divergence = _numerics.kl(log_p, _numerics.log_mixture(log_p, log_q, alpha))
    return _numerics.mask_values(scale**2 * divergence, where)
