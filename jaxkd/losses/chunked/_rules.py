"""Chunked losses as rules: a chunk's values and derivatives by the logits.

Logits are shifted by their maximum, so that no exponential overflows and a mass is at least 1. Sums over the vocabulary
are taken over all devices that share it. Both logarithms of a ratio share one subtraction of logits, and the terms of a
divergence are those of `_numerics.kl_terms`, so that a small one is not lost by rounding. A new loss is one more
function here: ``(chunk, number) -> (Value, ...)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from .. import _numerics, _top_k
from ._kernel import Chunk, Value

if TYPE_CHECKING:
    from jaxtyping import Array


class _Pair(NamedTuple):
    """Probabilities of student and teacher, and ``log(p_t / p_s)``.

    The logarithm is NaN at a word that both networks exclude, which is selected away.
    """

    student: Array
    teacher: Array
    ahead: Array


# --- pairs ------------------------------------------------------------------------------------------------------------


def forward_kl(chunk: Chunk, number: float) -> tuple[Value, ...]:
    """``T² KL(p_t ‖ p_s)``."""
    del number
    pair = _pair(chunk)
    value, d_teacher, d_student = _kl(chunk.axis, pair.teacher, pair.student, pair.ahead)
    return (_squared(chunk, value, d_student, d_teacher),)


def reverse_kl(chunk: Chunk, number: float) -> tuple[Value, ...]:
    """``T² KL(p_s ‖ p_t)``."""
    del number
    pair = _pair(chunk)
    return (_squared(chunk, *_kl(chunk.axis, pair.student, pair.teacher, -pair.ahead)),)


def skew_kl(chunk: Chunk, alpha: float) -> tuple[Value, ...]:
    """``T² KL(p_t ‖ α p_t + (1−α) p_s)``."""
    pair = _pair(chunk)
    value, d_teacher, d_student = _skew(chunk.axis, alpha, pair.teacher, pair.student, pair.ahead)
    return (_squared(chunk, value, d_student, d_teacher),)


def skew_reverse_kl(chunk: Chunk, alpha: float) -> tuple[Value, ...]:
    """``T² KL(p_s ‖ α p_s + (1−α) p_t)``."""
    pair = _pair(chunk)
    return (_squared(chunk, *_skew(chunk.axis, alpha, pair.student, pair.teacher, -pair.ahead)),)


def jsd(chunk: Chunk, beta: float) -> tuple[Value, ...]:
    """``β KL(p_t ‖ m) + (1−β) KL(p_s ‖ m)``, and the KL that it stands for at 0 and 1."""
    pair = _pair(chunk)
    if beta == 0:
        value, d_teacher, d_student = _kl(chunk.axis, pair.teacher, pair.student, pair.ahead)
        return (Value(value, d_student / chunk.scale, d_teacher / chunk.scale),)
    if beta == 1:
        value, d_student, d_teacher = _kl(chunk.axis, pair.student, pair.teacher, -pair.ahead)
        return (Value(value, d_student / chunk.scale, d_teacher / chunk.scale),)
    p_s, p_t = pair.student, pair.teacher
    gap_t, gap_s = _against_mixture(pair.ahead, beta)
    mixture = beta * p_t + (1 - beta) * p_s
    part_s, part_t = (jnp.where(p > 0, p * gap, 0) for p, gap in ((p_s, gap_s), (p_t, gap_t)))
    terms = beta * _numerics.kl_terms(gap_t, p_t, mixture) + (1 - beta) * _numerics.kl_terms(gap_s, p_s, mixture)
    value, mean_s, mean_t = _totals(chunk.axis, terms, part_s, part_t)
    d_s, d_t = (1 - beta) * (part_s - p_s * mean_s), beta * (part_t - p_t * mean_t)
    return (Value(value[:, 0], d_s / chunk.scale, d_t / chunk.scale),)


def total_variation(chunk: Chunk, number: float) -> tuple[Value, ...]:
    """``½ Σ |p_t − p_s|``."""
    del number
    p_s, p_t, _ = _pair(chunk)
    gap = _numerics.apart(p_s, p_t)
    side_s, side_t = p_s * jnp.sign(gap) / 2, -p_t * jnp.sign(gap) / 2
    value, mean_s, mean_t = _totals(chunk.axis, jnp.abs(gap) / 2, side_s, side_t)
    return (Value(value[:, 0], (side_s - p_s * mean_s) / chunk.scale, (side_t - p_t * mean_t) / chunk.scale),)


# --- labels and known words -------------------------------------------------------------------------------------------


def cross_entropy(chunk: Chunk, number: float) -> tuple[Value, ...]:
    """``−log softmax(z)[label]`` at temperature 1, NaN for a label that is no word."""
    del number
    logits, local = _shifted(chunk.student, 1.0, chunk.axis), _local(chunk, chunk.rows[0][:, None])
    exp = jnp.exp(logits)
    mass, own, known = _totals(chunk.axis, exp, *_picked(logits, local))
    own_word = jnp.arange(logits.shape[1])[None, :] == local
    slope = jnp.where(known > 0, exp / jnp.where(mass == 0, 1, mass) - own_word, 0)
    return (Value(jnp.where(known > 0, jnp.log(mass) - own, jnp.nan)[:, 0], slope),)


def cross_entropy_and_kl(chunk: Chunk, number: float) -> tuple[Value, ...]:
    """The values of `cross_entropy` and of `forward_kl`."""
    return *cross_entropy(chunk, number), *forward_kl(chunk, number)


def sparse(chunk: Chunk, number: float) -> tuple[Value, ...]:
    """``−Σ_j w_j log softmax(z)[i_j]`` at temperature 1."""
    del number
    logits, (weights, indices) = _shifted(chunk.student, 1.0, chunk.axis), chunk.rows
    local, row = _local(chunk, indices), jnp.arange(logits.shape[0])[:, None]
    own, known = _sums(chunk.axis, *_picked(logits, local))
    exp = jnp.exp(logits)
    mass = next(jnp.where(total == 0, 1, total) for total in _totals(chunk.axis, exp))
    finite, valid = own > -jnp.inf, jnp.all((known > 0) | (weights == 0), axis=1)
    value = -jnp.sum(weights * jnp.where(finite, own - jnp.log(mass), 0), axis=1)
    value += _numerics.infinite_where(weights, finite | (known == 0))
    # The derivative is q Σw minus the weights of the word; an excluded word's weight is a constant infinity.
    weights = jnp.where(finite & valid[:, None], weights, 0)
    here = (local >= 0) & (local < logits.shape[1])
    slope = exp / mass * jnp.sum(weights, axis=1, keepdims=True)
    slope = slope.at[row, jnp.where(here, local, 0)].add(jnp.where(here, -weights, 0))
    return (Value(jnp.where(valid, value, jnp.nan), slope),)


def top_k(chunk: Chunk, number: float) -> tuple[Value, ...]:
    """``T² KL`` to k known words of the teacher and a bucket of all others."""
    del number
    logits, (log_probs, indices) = _shifted(chunk.student, chunk.scale, chunk.axis), chunk.rows
    local, row, size = _local(chunk, indices), jnp.arange(logits.shape[0])[:, None], logits.shape[1]
    own, known = _sums(chunk.axis, *_picked(logits, local))
    here = (local >= 0) & (local < size)
    # Words of other devices are scattered to one place more than there are words, which is then cut off.
    kept = jnp.zeros((logits.shape[0], size + 1), bool).at[row, jnp.where(here, local, size)].set(True)[:, :-1]
    others = jnp.where(kept, -jnp.inf, logits)
    top, exp, exp_tail = _top(others, chunk.axis), jnp.exp(logits), jnp.exp(_shifted(others, 1.0, chunk.axis))
    mass, mass_tail = (jnp.where(total == 0, 1, total) for total in _totals(chunk.axis, exp, exp_tail))
    log_tail = (top + jnp.log(mass_tail) - jnp.log(mass))[:, 0]  # -inf where there is no other word
    value, valid, log_teacher = _top_k.divergence(log_probs, indices, known > 0, own - jnp.log(mass), log_tail)
    # The derivative is q Σp − p at a known word. The others share their bucket's p as they share the student's.
    p = jnp.where(valid[:, None], jnp.exp(log_teacher), 0)
    slope = exp / mass * jnp.sum(p, axis=1, keepdims=True) - exp_tail / mass_tail * p[:, -1:]
    slope = slope.at[row, jnp.where(here, local, 0)].add(jnp.where(here, -p[:, :-1], 0))
    return (_squared(chunk, jnp.where(valid, value, jnp.nan), slope),)


# --- parts ------------------------------------------------------------------------------------------------------------


def _top(x: Array, axis: str | None) -> Array:
    """Returns the largest logit of a token, over all devices."""
    top = jnp.max(x, axis=1, keepdims=True, initial=-jnp.inf)
    return top if axis is None else jax.lax.pmax(top, axis)


def _shifted(x: Array, scale: Array | float, axis: str | None) -> Array:
    """Returns logits minus their maximum, over T."""
    top, finite, least = _top(x, axis), x > -jnp.inf, _numerics.lowest(x.dtype)
    # Subtracted before the division by T, as in `_numerics.soften`, which says why.
    x = jnp.where(finite, x, 0) - jnp.where(top > -jnp.inf, top, 0)
    return jnp.where(finite, jnp.maximum(jnp.maximum(x, least) / scale, least), -jnp.inf)


def _sums(axis: str | None, *terms: Array) -> tuple[Array, ...]:
    """Returns the terms summed over the devices that share the vocabulary."""
    return terms if axis is None else jax.lax.psum(terms, axis)


def _totals(axis: str | None, *terms: Array) -> tuple[Array, ...]:
    """Returns sums over the whole vocabulary ``[chunk, 1]``."""
    return _sums(axis, *(jnp.sum(x, axis=1, keepdims=True) for x in terms))


def _pair(chunk: Chunk) -> _Pair:
    """Returns the probabilities of both networks."""
    assert chunk.teacher is not None
    s, t = (_shifted(x, chunk.scale, chunk.axis) for x in (chunk.student, chunk.teacher))
    exp_s, exp_t = jnp.exp(s), jnp.exp(t)
    mass_s, mass_t = (jnp.where(mass == 0, 1, mass) for mass in _totals(chunk.axis, exp_s, exp_t))
    return _Pair(exp_s / mass_s, exp_t / mass_t, (t - s) - (jnp.log(mass_t) - jnp.log(mass_s)))


def _squared(chunk: Chunk, value: Array, d_student: Array, d_teacher: Array | None = None) -> Value:
    """Returns T² times a value, from its derivatives by the logits over T."""
    scale = chunk.scale
    return Value(scale[:, 0] ** 2 * value, scale * d_student, None if d_teacher is None else scale * d_teacher)


def _kl(axis: str | None, p: Array, q: Array, gap: Array) -> tuple[Array, Array, Array]:
    """Returns ``KL(p ‖ q)`` and its derivatives by the softened logits of p and of q."""
    # At a word that q excludes, p has an infinite derivative; it is set to 0, and the other words keep theirs.
    slope = p * jnp.where((p > 0) & (gap < jnp.inf), gap, 0)
    value, mean = _totals(axis, _numerics.kl_terms(gap, p, q), slope)
    return value[:, 0], slope - p * mean, q - p


def _against_mixture(ahead: Array, share: float) -> tuple[Array, Array]:
    """Returns ``log(a / m)`` and ``log(b / m)`` from ``log(a / b)``.

    The mixture m is share a + (1−share) b.

    That of the larger probability has a form that cannot overflow; that of the smaller follows.
    """
    apart = -jnp.abs(ahead)
    mixed = jnp.log1p(jnp.where(ahead > 0, 1 - share, share) * jnp.expm1(apart))
    return jnp.where(ahead > 0, 0, apart) - mixed, jnp.where(ahead > 0, apart, 0) - mixed


def _skew(axis: str | None, alpha: float, p: Array, q: Array, ahead: Array) -> tuple[Array, Array, Array]:
    """Returns ``KL(p ‖ α p + (1−α) q)`` and its derivatives by both softened logits."""
    if alpha == 0:
        return _kl(axis, p, q, ahead)
    if alpha == 1:  # the mixture is p itself
        return jnp.zeros_like(p[:, 0]), jnp.zeros_like(p), jnp.zeros_like(q)
    gap, _ = _against_mixture(ahead, alpha)
    gap = jnp.where(p > 0, gap, 0)
    ratio = jnp.where(p > 0, jnp.exp(gap), 0)  # p / m, at most 1 / α
    own, other = p * (gap - alpha * ratio), -(1 - alpha) * q * ratio
    value, mean, mean_other = _totals(axis, _numerics.kl_terms(gap, p, alpha * p + (1 - alpha) * q), own, other)
    return value[:, 0], own - p * mean, other - q * mean_other


def _local(chunk: Chunk, indices: Array) -> Array:
    """Returns places in this device's slice, outside of it for others' words."""
    size = chunk.student.shape[1]
    return indices if chunk.axis is None else indices - size * jax.lax.axis_index(chunk.axis)


def _picked(logits: Array, local: Array) -> tuple[Array, Array]:
    """Returns the logits at words of this device, 0 for others', and 1 for its own."""
    here = (local >= 0) & (local < logits.shape[1])
    picked = jnp.take_along_axis(logits, jnp.where(here, local, 0), axis=1)
    return jnp.where(here, picked, 0), here.astype(logits.dtype)
