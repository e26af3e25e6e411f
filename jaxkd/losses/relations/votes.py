"""A relation by vote of several teachers: which of two examples is nearer.

The features of the teachers may differ in size from each other's and from the student's, since only the order of their
distances is used.

Distances are ``[batch, batch]``. Votes and hinges of the triplets exist for one block of them at a time. The loss is
piecewise linear in the distances, so that the forward pass already has its derivative: the number of triplets with a
positive hinge in which each distance occurs, which is all that is kept for the backward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from .. import _checks, _numerics
from . import _pairs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Array, Bool, Float

__all__ = ["voted_dissimilarity"]


def voted_dissimilarity(
    student: Float[Array, "batch *features"],
    teachers: Sequence[Float[Array, "batch *features_t"]] | Float[Array, "batch *features_t"],
    *,
    margin: float | Float[Array, ""] = 1.0,
    weights: Sequence[float] | Float[Array, " teachers"] | None = None,
    where: Bool[Array, " batch"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, " batch"]:
    """Hinge loss on triplets whose order the teachers decide by vote.

    Also known as: multi-teacher relative dissimilarity, triplet-order voting.

    ``max(0, ‖s_i − s_j‖² − ‖s_i − s_k‖² + δ)`` where the teachers have j nearer to i than k. Each teacher m has a vote
    on which of two examples is less dissimilar to an anchor, ``sign(‖t_i − t_k‖² − ‖t_i − t_j‖²)`` in its own feature.
    The vote of the triplet (i, j, k) is the weighted sum over the teachers, and the student has to have the order of
    the majority by a margin δ. You, Xu, Xu & Tao, "Learning from Multiple Teacher Networks", KDD 2017. The value is the
    mean over all triplets of distinct examples of the batch on which the vote is not tied. A teacher with equal
    distances abstains.

    The margin is in units of the student's squared distances: it fits features of about unit length, and the default of
    1 is this library's. Only the teachers' order is used, so they have no gradient.

    Args:
      student: features ``[batch, ...]``; all axes but the batch are flattened.
      teachers: features of the same batch by each teacher, of any feature sizes; one array is one teacher.
      margin: δ, at least 0.
      weights: weight of each teacher's vote, not negative; equal by default.
      where: mask, True for the examples to include ``[batch]``; masked examples are in no triplet.
      axis_name: a mapped axis over which the batch is split, in the order of its devices.

    Returns:
      Each anchor's share ``[batch]``: the sum over its triplets, times the number of anchors divided by that of all
      triplets. It is 0 with fewer than three examples, and where all votes are tied.

    Raises:
      ValueError: there are no teachers, the batches differ, an input is not floating-point ``[batch, ...]``, the
        weights do not fit, or the margin is negative.

    >>> student = jnp.array([[0.0], [3.0], [1.0]])
    >>> teachers = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0], [2.0], [5.0]]), jnp.array([[0.0], [5.0], [1.0]])
    >>> voted_dissimilarity(student, teachers)
    Array([13.5,  0. ,  6. ], dtype=float32)
    """
    _checks.not_negative("margin", margin)
    student, teachers, where = _inputs(student, teachers, where)
    votes = _weights(weights, len(teachers)).astype(student.dtype)
    every = _numerics.gather(where, axis_name)
    other = _pairs.different(where, every, axis_name)

    def to_all(x: Array) -> Array:
        return _pairs.squared_distances(x, _numerics.gather(x, axis_name))

    from_teachers = tuple(to_all(jax.lax.stop_gradient(x)) for x in teachers)
    total, count = _triplets(to_all(student), jnp.asarray(margin, student.dtype), from_teachers, votes, other)
    every_triplet, anchors = jnp.sum(count), jnp.sum(every, dtype=total.dtype)
    if axis_name is not None:
        every_triplet = jax.lax.psum(every_triplet, axis_name)
    return total * (anchors / jnp.maximum(every_triplet, 1))


@jax.custom_jvp
def _triplets(
    from_s: Array, margin: Array, from_t: tuple[Array, ...], votes: Array, other: Array
) -> tuple[Array, Array]:
    """Returns each anchor's sum over triplets, and their number, ``[v]``."""
    total, count, _, _ = _sums(from_s, margin, from_t, votes, other)
    return total, count


@_triplets.defjvp
def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Slopes of a piecewise linear sum: numbers of triplets with a positive hinge."""
    total, count, slope, active = _sums(*primals)
    change = jnp.sum(slope * tangents[0], axis=1) + active * tangents[1]
    return (total, count), (change, jnp.zeros_like(count))


def _sums(
    from_s: Array, margin: Array, from_t: tuple[Array, ...], votes: Array, other: Array
) -> tuple[Array, Array, Array, Array]:
    """Returns sums, numbers of triplets, slopes ``[v, n]``, and active triplets."""
    size, dtype = from_s.shape[1], from_s.dtype
    if from_s.size == 0:
        nothing = jnp.sum(from_s, axis=1)
        return nothing, nothing, from_s, nothing
    rows = max(1, min(size // 2, _pairs.BLOCK // size))
    resolution = 16 * jnp.finfo(dtype).eps

    def for_anchor(anchor: tuple[Array, tuple[Array, ...], Array]) -> tuple[Array, ...]:
        own, taught, included = anchor

        def for_end(j: Array) -> tuple[Array, ...]:
            """Sums the triplets in which j is the nearer end; the slope is of all with end j."""
            vote: Any = 0
            for weight, to in zip(votes, taught, strict=True):
                # Distances that differ in their last bits may be equal ones, computed on different devices.
                gap = to - to[j]
                vote = vote + weight * jnp.where(jnp.abs(gap) > resolution * (to + to[j]), jnp.sign(gap), 0)
            vote = jnp.where(included & included[j], vote, 0)
            tie = resolution * jnp.sum(votes)  # such as 0.1 + 0.2 against 0.3
            nearer, farther = vote > tie, vote < -tie
            hinge = own[j] - own + margin
            active = nearer & (hinge > 0)
            slope = jnp.sum(active, dtype=dtype) - jnp.sum(farther & (own - own[j] + margin > 0), dtype=dtype)
            total = jnp.sum(jnp.where(active, hinge, 0))
            return total, jnp.sum(nearer, dtype=dtype), slope, jnp.sum(active, dtype=dtype)

        total, count, slope, active = jax.lax.map(for_end, jnp.arange(size), batch_size=rows)
        return jnp.sum(total), jnp.sum(count), slope, jnp.sum(active)

    # At most a quarter of the anchors by half of the ends: an eighth of a device's triplets exists at once.
    anchors = max(1, min(len(from_s) // 4, _pairs.BLOCK // (rows * size)))
    total, count, slope, active = jax.lax.map(for_anchor, (from_s, from_t, other), batch_size=anchors)
    return total, count, slope, active


def _weights(weights: Any, teachers: int) -> Array:
    """Returns one weight per teacher."""
    if weights is None:
        return jnp.ones(teachers)
    expected = f"a number that is not negative for each of {teachers} teachers"
    listed = isinstance(weights, tuple | list) or getattr(weights, "ndim", 0) == 1
    if not listed or len(weights) != teachers:
        came = f"shape {[len(weights)]}" if listed else repr(weights)
        raise ValueError(f"weights: expected {expected}, got {came}.")
    try:
        return jnp.stack([jnp.asarray(_checks.number("weights", w, expected, lambda x: x >= 0)) for w in weights])
    except ValueError:
        raise ValueError(f"weights: expected {expected}, got {list(weights)}.") from None


def _inputs(student: Any, teachers: Any, where: Any) -> tuple[Array, tuple[Array, ...], Array]:
    """Returns ``[batch, features]`` of one dtype, 0 for masked examples, and the mask."""
    teachers = tuple(teachers) if isinstance(teachers, tuple | list) else (teachers,)
    if not teachers:
        raise ValueError("teachers: expected the features of at least one teacher, got none.")
    named = {"student": student} | {f"teachers[{i}]": x for i, x in enumerate(teachers)}
    features = [_checks.floating(name, x, "features [batch, ...]", least_rank=2) for name, x in named.items()]
    for name, x in zip(named, features, strict=True):
        _checks.same_batch(features[0], x, name)
    where = _checks.mask_or_ones(where, features[0].shape[:1])
    dtype = jnp.result_type(*features)
    student, *others = (_pairs.flat(x).astype(dtype) for x in _numerics.mask_inputs(where, *features))
    return student, tuple(others), where
