"""KL to a teacher of which k classes are known, of logits and in chunks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from . import _checks, _numerics

if TYPE_CHECKING:
    from jaxtyping import Array


def checked(log_probs: Any, indices: Any, shape: tuple[int, ...], classes: int, student: str) -> tuple[Array, Array]:
    """Returns the teacher's log-probabilities and classes ``[*shape, k]``.

    Args:
      log_probs: the teacher's log-probabilities.
      indices: their classes.
      shape: leading dimensions of the student.
      classes: number of its classes.
      student: what the student is, for errors.
    """
    log_probs = _checks.floating("log_probs", log_probs, "log-probabilities [..., k]", least_rank=1)
    indices = jnp.asarray(indices)
    if log_probs.shape[:-1] != shape or not 0 < log_probs.shape[-1] <= classes:
        raise ValueError(
            f"log_probs: expected {[*shape, 'k']} with k from 1 to the {classes} classes of {student}, got "
            f"{list(log_probs.shape)}."
        )
    if not jnp.issubdtype(indices.dtype, jnp.integer) or indices.shape != log_probs.shape:
        raise ValueError(
            f"indices: expected an integer class for each of log_probs {list(log_probs.shape)}, got "
            f"{indices.dtype}{list(indices.shape)}."
        )
    return log_probs, indices.astype(jnp.promote_types(indices.dtype, jnp.int32))


def divergence(
    log_probs: Array, indices: Array, known: Array, log_student: Array, log_tail: Array
) -> tuple[Array, Array, Array]:
    """Returns the KL, a mask of valid rows, and the teacher's ``[..., k + 1]``.

    Args:
      log_probs: the teacher's log-probabilities ``[..., k]``.
      indices: their classes.
      known: True where the index is a class.
      log_student: the student's log-probabilities of these classes.
      log_tail: its log-probability of all others ``[...]``.
    """
    repeated, contradicts = _repeated(log_probs, indices)
    valid = jnp.all(known | (log_probs == -jnp.inf), axis=-1) & ~contradicts
    log_probs = jnp.where(repeated, -jnp.inf, log_probs)
    log_sum = _log_sum(log_probs)
    log_teacher = jnp.concatenate([log_probs, _log_rest(log_sum, log_tail)[..., None]], axis=-1)
    log_student = jnp.where(known & ~repeated, log_student, -jnp.inf)
    log_student = jnp.concatenate([log_student, log_tail[..., None]], axis=-1)
    excess = jnp.maximum(jnp.expm1(log_sum), 0)  # kl assumes that both sum to 1
    return _numerics.kl(log_teacher, log_student) + excess, valid, log_teacher


def first_of_each(indices: Array, known: Array) -> Array:
    """Returns True where a known class is listed for the first time ``[..., k]``."""
    same = indices[..., :, None] == indices[..., None, :]
    earlier = jnp.broadcast_to(jnp.tri(indices.shape[-1], k=-1, dtype=bool), same.shape)
    return known & ~jnp.any(same & earlier, axis=-1)


def bit_set(indices: Array, first: Array, classes: int) -> Array:
    """Returns classes as a set of bits ``[..., classes / 32]``.

    A mask of the classes, which are many, would take a quarter of the logits' memory. ``first`` marks each class once,
    since a bit that is added twice is another one.
    """
    place = jnp.where(first, indices, 0)
    bit = jnp.where(first, jnp.left_shift(jnp.uint32(1), (place % 32).astype(jnp.uint32)), 0).astype(jnp.uint32)
    shape, words = indices.shape[:-1], -(-classes // 32)
    bits = jnp.zeros((math.prod(shape), words), jnp.uint32)
    rows = jnp.arange(len(bits))[:, None]
    flat = (x.reshape(len(bits), indices.shape[-1]) for x in (place // 32, bit))
    return bits.at[rows, next(flat)].add(next(flat)).reshape(*shape, words)


def in_set(bits: Array, classes: int) -> Array:
    """Returns the mask ``[..., classes]`` of a set of bits."""
    place = jnp.arange(32, dtype=jnp.uint32)
    mask = jnp.right_shift(bits[..., None], jnp.broadcast_to(place, (*bits.shape, 32))) & 1
    return mask.reshape(*bits.shape[:-1], bits.shape[-1] * 32)[..., :classes] > 0


def _log_sum(log_p: Array) -> Array:
    """Returns ``log Σ p`` over the last axis, with derivative 0 where all p are 0."""
    some = jnp.any(log_p > -jnp.inf, axis=-1)
    return jnp.where(some, jax.nn.logsumexp(jnp.where(some[..., None], log_p, 0), axis=-1), -jnp.inf)


def _repeated(log_probs: Array, indices: Array) -> tuple[Array, Array]:
    """Returns masks of classes listed before and of lists with two values for one."""
    same = indices[..., :, None] == indices[..., None, :]
    own, other = log_probs[..., :, None], log_probs[..., None, :]
    place = jnp.arange(indices.shape[-1])
    earlier = jnp.broadcast_to(place[None, :] < place[:, None], same.shape)
    before = (other > own) | ((other == own) & earlier)
    differs = (own != other) & (own > -jnp.inf) & (other > -jnp.inf)
    return jnp.any(same & before, axis=-1), jnp.any(same & differs, axis=(-2, -1))


def _log_rest(log_sum: Array, log_tail: Array) -> Array:
    """Returns the teacher's log-tail, from its log-sum and the student's log-tail."""
    rest = -jnp.expm1(jnp.minimum(log_sum, 0))
    # Where the student has no tail, a teacher's tail that is a rounding error would make the loss infinite.
    resolution = jnp.where(log_tail > -jnp.inf, 0, 16 * jnp.finfo(rest.dtype).eps)
    some = rest > resolution
    return jnp.where(some, jnp.log(jnp.where(some, rest, 1)), -jnp.inf)
