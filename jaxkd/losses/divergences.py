"""Response losses for language models: skewed divergences, and the KL to a teacher of which k classes are known.

Every function returns one value per example, or per token, and works in log-space from logits, so nothing here ever
clips a probability. This file needs only jax and can be lifted out of the package as it stands.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

__all__ = ["skew_kl", "skew_reverse_kl", "top_k_kl"]


def skew_kl(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    alpha: float | Float[Array, ""] = 0.1,
    temperature: float | Float[Array, "*#batch"] = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Skew KL: ``T² KL(p_t ‖ α p_t + (1−α) p_s)`` with ``p = softmax(z / T)``.

    Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models", ICML 2024, section 3.1. With
    α = 0 it is `soft_target_kl`. The paper has T = 1. The authors' code takes the logarithm of the mixed
    probabilities, which is ``-inf`` where both are too small for their type; here both are mixed as logarithms.

    Args:
      student: logits ``[..., classes]``.
      teacher: logits ``[..., classes]``. A class that is ``-inf`` for both adds nothing.
      alpha: the teacher's share of the mixture, a number from 0 to 1.
      temperature: T > 0, a scalar or one for each example ``[...]``.
      where: True for the examples that count ``[...]``; the others give 0 and no gradient, whatever they hold.

    Returns:
      One value per example ``[...]``, in nats times T², at most ``-log α`` times T²: finite, also where the student
      excludes what the teacher does not.

    Raises:
      ValueError: shapes differ (nothing is ever broadcast), dtypes are not floating, α is outside [0, 1], or T is not
        positive.

    >>> skew_kl(jnp.array([[0.0, 100.0]]), jnp.array([[100.0, 0.0]]), alpha=0.1).round(4)  # log 10, in place of 100
    Array([2.3026], dtype=float32)
    """
    log_student, log_teacher, scale, where = _log_probs(student, teacher, temperature, where)
    return _drop(scale**2 * _kl(log_teacher, _log_mixture(log_teacher, log_student, alpha)), where)


def skew_reverse_kl(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    alpha: float | Float[Array, ""] = 0.1,
    temperature: float | Float[Array, "*#batch"] = 1.0,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Skew reverse KL: ``T² KL(p_s ‖ (1−α) p_t + α p_s)`` with ``p = softmax(z / T)``.

    Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models", ICML 2024, section 3.1. With
    α = 0 it is `reverse_kl`. It is `skew_kl` with student and teacher exchanged: α is the student's share here.

    Args:
      student: logits ``[..., classes]``.
      teacher: logits ``[..., classes]``. A class that is ``-inf`` for both adds nothing.
      alpha: the student's share of the mixture, a number from 0 to 1.
      temperature: T > 0, a scalar or one for each example ``[...]``.
      where: True for the examples that count ``[...]``.

    Returns:
      One value per example ``[...]``, in nats times T², at most ``-log α`` times T².

    Raises:
      ValueError: shapes differ, dtypes are not floating, α is outside [0, 1], or T is not positive.

    >>> skew_reverse_kl(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]]), alpha=0.1).round(4)
    Array([0.7233], dtype=float32)
    """
    log_student, log_teacher, scale, where = _log_probs(student, teacher, temperature, where)
    return _drop(scale**2 * _kl(log_student, _log_mixture(log_student, log_teacher, alpha)), where)


def top_k_kl(
    student: Float[Array, "*batch classes"],
    log_probs: Float[Array, "*batch k"],
    indices: Int[Array, "*batch k"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """KL to a teacher of which k classes are known: ``Σ_k p_t log(p_t / p_s) + r_t log(r_t / r_s)``.

    ``r`` is the probability of all other classes, the tail, as one bucket. Merging classes never raises a KL, so this
    is a lower bound of ``KL(p_t ‖ p_s)``; it rises with k, is never negative, is 0 when the student agrees on the k
    classes, and is the whole KL when k is the number of classes. Code that sums over the k classes alone has no such
    bound: the sum can be negative, and is then clamped to 0, where it teaches nothing; and renormalised to the k
    classes, it leaves the student free to put its mass on all the others.

    Args:
      student: logits ``[..., classes]``.
      log_probs: the teacher's log-probabilities, normalised over all classes, of the k that were kept ``[..., k]``.
        ``-inf`` is probability 0 and adds nothing. What they sum to above 1, by rounding, leaves no tail.
      indices: the classes that these are of ``[..., k]``, all different. To keep fewer for some examples, pad with a
        log-probability of ``-inf`` and the index -1.
      where: True for the examples that count ``[...]``.

    Returns:
      One value per example ``[...]``, in nats. A counted index outside ``[0, classes)``, padding apart, gives NaN. It
      is infinite, truly, where the student excludes (``-inf``) what the teacher does not; the gradient is finite.

    Raises:
      ValueError: the leading shapes differ, k is 0 or more than the classes, dtypes are not floating, or indices not
        integers.

    >>> teacher, student = jnp.log(jnp.array([[0.5, 0.3, 0.1, 0.1]])), jnp.log(jnp.array([[0.2, 0.2, 0.3, 0.3]]))
    >>> log_probs, indices = jax.lax.top_k(teacher, 2)
    >>> top_k_kl(student, log_probs, indices).round(4)  # the tail has 0.2 of the teacher and 0.6 of the student
    Array([0.3601], dtype=float32)
    """
    student, log_probs = _upcast("student", student), _upcast("log_probs", log_probs)
    indices, classes = jnp.asarray(indices), student.shape[-1]
    if log_probs.shape[:-1] != student.shape[:-1] or not 0 < log_probs.shape[-1] <= classes:
        raise ValueError(
            f"log_probs: expected {[*student.shape[:-1], 'k']} with k from 1 to the {classes} classes of the student "
            f"{list(student.shape)}, got {list(log_probs.shape)}."
        )
    if not jnp.issubdtype(indices.dtype, jnp.integer) or indices.shape != log_probs.shape:
        raise ValueError(
            f"indices: expected an integer class for each of log_probs {list(log_probs.shape)}, got "
            f"{indices.dtype}{list(indices.shape)}."
        )
    (student, log_probs), where = _keep(where, student.shape[:-1], student, log_probs)
    indices = indices.astype(jnp.promote_types(indices.dtype, jnp.int32))
    known = (indices >= 0) & (indices < classes)
    log_student = jax.nn.log_softmax(student)

    own = jnp.take_along_axis(log_student, jnp.where(known, indices, 0), axis=-1)
    valid = jnp.all(known | (log_probs == -jnp.inf), axis=-1)
    # Of an index beyond the classes, a scatter makes nothing.
    kept = jnp.zeros((*student.shape[:-1], classes + 1), bool)
    kept = jnp.put_along_axis(kept, jnp.where(known, indices, classes), True, axis=-1, inplace=False)[..., :classes]
    tail = _log_sum(jnp.where(kept, -jnp.inf, log_student))
    log_student = jnp.concatenate([jnp.where(known, own, -jnp.inf), tail[..., None]], axis=-1)
    log_sum = _log_sum(log_probs)
    log_teacher = jnp.concatenate([log_probs, _log_rest(log_sum, tail)[..., None]], axis=-1)
    excess = jnp.maximum(jnp.expm1(log_sum), 0)  # _kl is that of two sums of 1
    return _drop(jnp.where(valid, _kl(log_teacher, log_student) + excess, jnp.nan), where)


def _log_probs(student: Array, teacher: Array, temperature: float | Array, where: Array | None) -> tuple[Any, ...]:
    """Checked, masked and softened: log p_s, log p_t, and the temperature as ``[...]``."""
    student, teacher = _upcast("student", student), _upcast("teacher", teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher: expected the student's shape {list(student.shape)}, got {list(teacher.shape)}. Nothing is "
            "broadcast; reshape one of them, or select the classes that both know."
        )
    (student, teacher), where = _keep(where, student.shape[:-1], student, teacher)
    scale = _temperature(temperature, student)

    def over(x: Array) -> Array:
        if not isinstance(temperature, jax.core.Tracer):
            return x / scale[..., None]
        # Infinity over a learned T has no slope.
        fixed = jax.lax.stop_gradient(scale)[..., None]
        return jnp.where(x == -jnp.inf, x / fixed, jnp.maximum(x, jnp.finfo(x.dtype).min) / scale[..., None])

    return jax.nn.log_softmax(over(student)), jax.nn.log_softmax(over(teacher)), scale, where


def _log_mixture(log_p: Array, log_q: Array, alpha: float | Array) -> Array:
    """``log(α p + (1−α) q)``."""
    traced = isinstance(alpha, jax.core.Tracer)
    if not traced and not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected a number from 0 to 1, got {alpha}.")
    if not traced and alpha in (0, 1):
        return log_p if alpha else log_q
    # A class that both exclude has no mixture, and logaddexp no slope there.
    possible = (log_p > -jnp.inf) | (log_q > -jnp.inf)
    parts = (jnp.where(possible, x, 0) for x in (log_p + jnp.log(alpha), log_q + jnp.log1p(-alpha)))
    return jnp.where(possible, jnp.logaddexp(*parts), -jnp.inf)


def _log_sum(log_p: Array) -> Array:
    """``log Σ p`` over the last axis; nothing but zeros has no slope."""
    some = jnp.any(log_p > -jnp.inf, axis=-1)
    return jnp.where(some, jax.nn.logsumexp(jnp.where(some[..., None], log_p, 0), axis=-1), -jnp.inf)


def _log_rest(log_sum: Array, log_student: Array) -> Array:
    """What is left of probability 1 by the teacher's classes, given what their student leaves."""
    rest = -jnp.expm1(jnp.minimum(log_sum, 0))
    # Where the student leaves nothing, the rounding of a sum that should be 1 must not cost infinitely much.
    resolution = jnp.where(log_student > -jnp.inf, 0, 16 * jnp.finfo(rest.dtype).eps)
    some = rest > resolution
    return jnp.where(some, jnp.log(jnp.where(some, rest, 1)), -jnp.inf)


def _excess(gap: Array) -> Array:
    """``g + e⁻ᵍ − 1`` of |g| < 1 as its series: exact where the terms cancel, and cheaper than an `expm1`."""
    last = 11 if gap.dtype == jnp.float32 else 18
    rest = jnp.zeros_like(gap)
    for k in range(last, 1, -1):
        rest = rest * gap + (-1) ** k / math.factorial(k)
    return rest * gap * gap


@jax.custom_jvp
def _kl(log_p: Array, log_q: Array) -> Array:
    """``Σ p (log p − log q)`` of two distributions over the last axis, with 0 log 0 = 0."""
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    gap = jnp.where(p > 0, log_p - log_q, 0)  # of weight 0 it may be inf - inf
    near = (p > 0) & (jnp.abs(gap) < 1)
    # In all, q - p is 0; class by class, it cancels the roundings of the logarithms, which would hide a small KL.
    return jnp.sum(jnp.where(near, p * _excess(jnp.where(near, gap, 0)), p * gap + (q - p)), axis=-1)


@_kl.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """By hand, so that one array is kept for the backward pass; where the KL is infinite, p has no slope."""
    p, gap = jnp.exp(primals[0]), primals[0] - primals[1]
    slope = p * jnp.where((p > 0) & (gap < jnp.inf), gap, 0)
    return _kl(*primals), jnp.sum(slope * tangents[0] + (jnp.exp(primals[1]) - p) * tangents[1], axis=-1)


def _upcast(name: str, x: Array) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim == 0:
        raise ValueError(f"{name}: expected floating-point [..., classes], got {x.dtype}{list(x.shape)}.")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _temperature(temperature: float | Array, student: Array) -> Array:
    if not isinstance(temperature, jax.core.Tracer):
        numbers = jax.tree.leaves(temperature.tolist() if hasattr(temperature, "tolist") else temperature)
        if not all(number > 0 for number in numbers):  # NaN is not
            raise ValueError(f"temperature: expected positive numbers, got {temperature}.")
    value, shape = jnp.asarray(temperature, student.dtype), student.shape[:-1]
    if value.shape not in ((), shape):
        raise ValueError(f"temperature: expected one number, or {list(shape)} of them, got {list(value.shape)}.")
    return jnp.broadcast_to(value, shape)


def _keep(where: Array | None, shape: tuple[int, ...], *arrays: Array) -> tuple[tuple[Array, ...], Array | None]:
    """Zeros the logits that do not count before anything nonlinear can see them."""
    if where is None:
        return arrays, None
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_ or where.shape != shape:
        raise ValueError(
            f"where: expected bool{list(shape)}, True for what counts, got {where.dtype}{list(where.shape)}."
        )
    return tuple(jnp.where(where[..., None], x, 0) for x in arrays), where


def _drop(values: Array, where: Array | None) -> Array:
    return values if where is None else jnp.where(where, values, 0)
